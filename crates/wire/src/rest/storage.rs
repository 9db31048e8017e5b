//! Secrets and volumes: what outlives sandboxes and is not one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `POST /secrets`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewSecret {
    /// Its name; upper and lower case are the same.
    pub name: String,
    /// The secret.
    pub value: String,
    /// Free labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// `POST /secrets/{id or name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecretUpdate {
    /// The new value.
    pub value: String,
    /// New labels; absent keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A secret without its value, which is never told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its id.
    #[serde(rename = "secretID")]
    pub secret_id: String,
    /// Its name.
    pub name: String,
    /// Counts its values, from 1.
    #[serde(rename = "currentVersion")]
    pub current_version: u64,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// When it was created.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// When its value was last replaced.
    #[serde(rename = "updatedAt")]
    pub updated_at: Timestamp,
}

/// `POST /volumes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
}

/// A volume as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// Its name.
    pub name: String,
    /// Bytes that it holds; absent while they are being counted. Ours, not the contract's.
    #[serde(rename = "usedBytes", default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Bytes that it may hold. Ours, not the contract's.
    #[serde(rename = "quotaBytes", default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}

/// A volume and what opens its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAndToken {
    /// The fields that lists show.
    #[serde(flatten)]
    pub volume: Volume,
    /// Bearer token of `/volumecontent/{id}`.
    pub token: String,
    /// The content is at `https://api.<domain>`; absent leaves the client's own setting in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeEntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Unknown,
}

/// An entry of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// Its last component.
    pub name: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: VolumeEntryKind,
    /// Its path.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was read.
    pub atime: Timestamp,
    /// When it was written.
    pub mtime: Timestamp,
    /// When anything of it changed.
    pub ctime: Timestamp,
    /// Where a link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// `PATCH /volumecontent/{id}/path`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeEntryChange {
    /// New owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// New group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// New permissions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}
