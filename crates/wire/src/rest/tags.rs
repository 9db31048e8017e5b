//! Looking at the tags of a template. There is one assignment of each: what a tag named before is not kept.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `GET /templates/{id}/tags/count`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagsCount {
    /// How many there are.
    pub total: usize,
}

/// `GET /templates/{id}/tags/exists`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagExists {
    /// Whether it does.
    pub exists: bool,
    /// The tag as it would be kept.
    #[serde(rename = "normalizedTag")]
    pub normalized_tag: String,
}

/// A build that a tag names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagAssignment {
    /// Id of the assignment, a UUID.
    #[serde(rename = "assignmentId")]
    pub assignment_id: String,
    /// The build.
    #[serde(rename = "buildId")]
    pub build_id: String,
    /// Since when.
    #[serde(rename = "assignedAt")]
    pub assigned_at: Timestamp,
    /// When the build was begun.
    #[serde(rename = "buildCreatedAt")]
    pub build_created_at: Timestamp,
    /// When it was ready.
    #[serde(rename = "buildFinishedAt")]
    pub build_finished_at: Option<Timestamp>,
}

/// `GET /templates/{id}/tags/{tag}/assignments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagAssignments {
    /// Newest first.
    pub data: Vec<TagAssignment>,
    /// Leads to the next page.
    #[serde(rename = "nextCursor")]
    pub next_cursor: Option<String>,
}

/// A tag with the first of its assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagGroup {
    /// The tag.
    pub tag: String,
    /// Newest first.
    pub assignments: Vec<TagAssignment>,
    /// Whether there are more.
    #[serde(rename = "hasMore")]
    pub has_more: bool,
}

/// `GET /templates/{id}/tags/groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagGroups {
    /// One page of them.
    pub tags: Vec<TagGroup>,
    /// Leads to the next page.
    #[serde(rename = "nextCursor")]
    pub next_cursor: Option<String>,
}
