//! What happens to sandboxes in E2B's form, as its events API tells it and its webhooks are sent it.
//!
//! E2B documents names of fields in camel case, and sends them with underscores: a payload has both.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::changes::{Change, SandboxEvent, SandboxSummary, What};
use crate::store::{LifecycleKind, spec::SandboxState};

/// The version of the form.
const VERSION: &str = "v2";

/// Something that happened to a sandbox, here or on another node of a cluster, which says so in the same form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LifecycleEvent {
    /// Its id, a UUID, the same for whoever is told of it.
    pub id: String,
    /// Of the form.
    pub version: Cow<'static, str>,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: LifecycleKind,
    /// When.
    pub timestamp: Timestamp,
    /// E2B's earlier word for the kind.
    pub event_category: Cow<'static, str>,
    /// And its other half.
    pub event_label: Cow<'static, str>,
    /// Labels of the sandbox, what its run used, what was changed.
    pub event_data: Value,
    /// The sandbox.
    pub sandbox_id: String,
    /// The run of it that this is of, a UUID.
    pub sandbox_execution_id: String,
    /// What it came from.
    pub sandbox_template_id: String,
    /// The build of that; absent for sandboxes of earlier servers.
    pub sandbox_build_id: Option<String>,
    /// Whose it is.
    pub sandbox_team_id: String,
}

impl LifecycleEvent {
    /// What a change is in these words, if it is anything.
    pub fn of(change: &Change) -> Option<Self> {
        let What::Sandbox { event, sandbox, .. } = &change.what else { return None };
        let (kind, event_label) = kind_of(*event, sandbox)?;
        Some(Self {
            id: uuid_of(&format!("event {}", change.id)),
            version: VERSION.into(),
            kind,
            timestamp: change.at,
            event_category: "lifecycle".into(),
            event_label: event_label.into(),
            event_data: data(*event, sandbox, change.at),
            sandbox_id: sandbox.id.to_string(),
            sandbox_execution_id: uuid_of(&format!("run {} {}", sandbox.id, sandbox.epoch)),
            sandbox_template_id: sandbox.template_id.clone(),
            sandbox_build_id: sandbox.build_id.clone(),
            sandbox_team_id: sandbox.team.to_string(),
        })
    }

    /// What a webhook is sent.
    pub(crate) fn payload(&self) -> String {
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) | Err(_) => Map::new(),
        };
        let underscored: Vec<_> = fields.iter().map(|(name, value)| (underscored(name), value.clone())).collect();
        fields.extend(underscored);
        Value::Object(fields).to_string()
    }
}

fn kind_of(event: SandboxEvent, sandbox: &SandboxSummary) -> Option<(LifecycleKind, &'static str)> {
    match event {
        SandboxEvent::Created => Some((LifecycleKind::Created, "create")),
        SandboxEvent::Paused => Some((LifecycleKind::Paused, "pause")),
        SandboxEvent::Resumed => Some((LifecycleKind::Resumed, "resume")),
        // It was paused for that; one that was paused before is, still.
        SandboxEvent::RolledBack if sandbox.state == SandboxState::Running => Some((LifecycleKind::Resumed, "resume")),
        SandboxEvent::RolledBack | SandboxEvent::TimeoutChanged | SandboxEvent::NetworkChanged => {
            Some((LifecycleKind::Updated, "update"))
        }
        SandboxEvent::Cut => Some((LifecycleKind::Checkpointed, "checkpoint")),
        SandboxEvent::Killed => Some((LifecycleKind::Killed, "kill")),
        SandboxEvent::Pausing
        | SandboxEvent::PauseFailed
        | SandboxEvent::ResumeFailed
        | SandboxEvent::StandsStill
        | SandboxEvent::GoesOn
        | SandboxEvent::Failed => None,
    }
}

fn data(event: SandboxEvent, sandbox: &SandboxSummary, at: Timestamp) -> Value {
    let mut data = json!({ "sandbox_metadata": sandbox.metadata });
    // One that is killed while it is paused has ended its run before.
    let ended = match event {
        SandboxEvent::Paused => true,
        SandboxEvent::Killed => sandbox.state == SandboxState::Running,
        _ => false,
    };
    if ended {
        data["execution"] = json!({
            "started_at": sandbox.started_at,
            "vcpu_count": sandbox.cpu_count,
            "memory_mb": sandbox.memory_mib,
            "execution_time": at.duration_since(sandbox.started_at).max(SignedDuration::ZERO).as_millis(),
        });
    }
    if event == SandboxEvent::TimeoutChanged {
        data["set_timeout"] = json!(sandbox.end_at);
    }
    data
}

/// `sandboxId` -> `sandbox_id`.
fn underscored(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// A UUID (RFC 9562, version 8) that is the same for the same text.
fn uuid_of(text: &str) -> String {
    let hash = blake3::hash(text.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = u128::from_be_bytes(bytes);
    let digits = format!("{hex:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_have_their_forms() {
        assert_eq!((underscored("sandboxTeamId"), underscored("id")), ("sandbox_team_id".into(), "id".into()));
        let id = uuid_of("x");
        assert!(crate::ground::random::is_uuid(&id) && id == uuid_of("x") && id != uuid_of("y"), "{id}");
    }
}
