//! Bodies of E2B's API for template builds.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rest::{BuildStatus, LogLevel};

/// `POST /v3/templates`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestBuild {
    /// `name` or `name:tag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name, as older clients send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Further tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Virtual CPUs.
    #[serde(rename = "cpuCount", default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<i64>,
    /// Memory, MiB.
    #[serde(rename = "memoryMB", default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i64>,
    /// Free disk that sandboxes must have at least, MiB.
    #[serde(rename = "minFreeDiskMb", default, skip_serializing_if = "Option::is_none")]
    pub min_free_disk_mb: Option<i64>,
    /// The team of the template: there is one.
    #[serde(rename = "teamID", default, skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
}

/// `POST /templates` and `POST /templates/{id}`: how clients asked for a build that push an image of their own to a registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestLegacyBuild {
    /// The name of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The Dockerfile of the image. The client builds it itself; this is for the record only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// Left running in the template.
    #[serde(rename = "startCmd", default, skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// Exits 0 when that is ready.
    #[serde(rename = "readyCmd", default, skip_serializing_if = "Option::is_none")]
    pub ready_cmd: Option<String>,
    /// Virtual CPUs.
    #[serde(rename = "cpuCount", default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<i64>,
    /// Memory, MiB.
    #[serde(rename = "memoryMB", default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i64>,
    /// The team of the template.
    #[serde(rename = "teamID", default, skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
}

/// The answer to a request for a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestedBuild {
    /// The template that the build becomes.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// UUID.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Whether other teams may use it.
    pub public: bool,
    /// Names with the team.
    pub names: Vec<String>,
    /// Tags of this build.
    pub tags: Vec<String>,
    /// Names without the team.
    pub aliases: Vec<String>,
}

/// `GET /templates/{id}/files/{hash}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileUpload {
    /// Whether the files are there already.
    pub present: bool,
    /// Where to `PUT` them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Headers to send with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
}

/// `POST /v2/templates/{id}/builds/{build}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StartBuild {
    /// Image to stand on.
    #[serde(rename = "fromImage", default, skip_serializing_if = "Option::is_none")]
    pub from_image: Option<String>,
    /// Template to stand on.
    #[serde(rename = "fromTemplate", default, skip_serializing_if = "Option::is_none")]
    pub from_template: Option<String>,
    /// How to log in to the image's registry. Read only: no client of ours logs in anywhere.
    #[serde(rename = "fromImageRegistry", default, skip_serializing)]
    pub from_image_registry: Option<Registry>,
    /// Whether every step is carried out although its result is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// In order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Step>>,
    /// Left running in the template.
    #[serde(rename = "startCmd", default, skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// Exits 0 when that is ready.
    #[serde(rename = "readyCmd", default, skip_serializing_if = "Option::is_none")]
    pub ready_cmd: Option<String>,
    /// Whether its guests may run guests. Ours: the contract knows nothing of the kind.
    #[serde(rename = "nestedVirtualization", default, skip_serializing_if = "Option::is_none")]
    pub nested_virtualization: Option<bool>,
    /// What its sandboxes run on: `kvm`, `gvisor` or `emulated`. Ours, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// `RUN`, `COPY`, `WORKDIR`, `USER`, `ENV`, or an alias.
    #[serde(rename = "type")]
    pub kind: String,
    /// By kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Names uploaded files.
    #[serde(rename = "filesHash", default, skip_serializing_if = "Option::is_none")]
    pub files_hash: Option<String>,
    /// Whether this and what follows are carried out although their result is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// How to log in to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RegistryFields")]
pub enum Registry {
    /// By name and password.
    Registry {
        /// Name.
        username: String,
        /// Password or token.
        password: String,
    },
    /// Amazon's, by keys.
    Aws {
        /// Region of the registry.
        region: String,
    },
    /// Google's, by a service account.
    Gcp {
        /// Its key file.
        service_account: String,
    },
}

/// A registry as it is sent: by `type`, which says what else there must be.
#[derive(Deserialize)]
struct RegistryFields {
    #[serde(rename = "type")]
    kind: RegistryKind,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "awsRegion")]
    aws_region: Option<String>,
    /// Known, and not looked at: AWS keys are refused.
    #[serde(rename = "awsAccessKeyId")]
    _aws_access_key_id: Option<Value>,
    #[serde(rename = "awsSecretAccessKey")]
    _aws_secret_access_key: Option<Value>,
    #[serde(rename = "serviceAccountJson")]
    service_account_json: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RegistryKind {
    Registry,
    Aws,
    Gcp,
}

/// Why a registry is none.
#[derive(Debug, thiserror::Error)]
#[error("missing field `{0}`")]
struct MissingField(&'static str);

impl TryFrom<RegistryFields> for Registry {
    type Error = MissingField;

    fn try_from(fields: RegistryFields) -> Result<Self, MissingField> {
        let needed = |field: Option<String>, name| field.ok_or(MissingField(name));
        Ok(match fields.kind {
            RegistryKind::Registry => {
                Self::Registry { username: needed(fields.username, "username")?, password: needed(fields.password, "password")? }
            }
            RegistryKind::Aws => Self::Aws { region: needed(fields.aws_region, "awsRegion")? },
            RegistryKind::Gcp => Self::Gcp { service_account: needed(fields.service_account_json, "serviceAccountJson")? },
        })
    }
}

/// `GET /templates/{id}/builds/{build}/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// The messages alone, for older clients.
    pub logs: Vec<String>,
    /// The entries from the offset on.
    #[serde(rename = "logEntries")]
    pub log_entries: Vec<BuildLogEntry>,
    /// The template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// How far it has come.
    pub status: BuildStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<BuildReason>,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildReason {
    /// In words.
    pub message: String,
    /// `base`, a number from 1, or `finalize`.
    pub step: String,
    /// The last that this step said.
    #[serde(rename = "logEntries")]
    pub log_entries: Vec<BuildLogEntry>,
}

/// One entry of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLogEntry {
    /// When.
    pub timestamp: Timestamp,
    /// The message.
    pub message: String,
    /// How grave.
    pub level: LogLevel,
    /// In which step.
    pub step: String,
}

/// `GET /templates/{id}/builds/{build}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLogs {
    /// A part of the log.
    pub logs: Vec<BuildLogEntry>,
}

/// `PATCH /templates/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateTemplate {
    /// Whether other teams may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// Its description; an empty text removes it. Ours: the contract shows it and has no way to say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The answer to `PATCH /v2/templates/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatedTemplate {
    /// Full names of the template.
    pub names: Vec<String>,
}
