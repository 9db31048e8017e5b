//! What a check found, and how it is told.

use std::path::PathBuf;

use serde::Serialize;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// The thing that was checked.
    pub(crate) name: &'static str,
    /// How it stands.
    pub(crate) status: Status,
    /// The finding.
    pub(crate) found: String,
    /// Why it is needed.
    pub(crate) why: &'static str,
    /// The remedy. Absent when it is in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
    /// The lack, where [`super::plan`] can mend it.
    #[serde(skip)]
    pub(crate) lack: Option<Lack>,
}

/// How a checked thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// In order.
    Ok,
    /// Sandboxes start, but not as well or not as many as they could.
    Warn,
    /// No sandbox starts.
    Fail,
}

/// Something that a package brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// A QEMU that is new enough.
    Qemu,
    /// A package of the host's own release.
    Package(&'static str),
    /// gVisor, and what makes its root images.
    Gvisor,
}

/// The finding of a single check.
pub(super) struct Finding {
    pub(super) status: Status,
    pub(super) found: String,
    pub(super) remedy: Option<String>,
    pub(super) lack: Option<Lack>,
}

impl Finding {
    pub(super) fn ok(found: impl Into<String>) -> Self {
        Finding { status: Status::Ok, found: found.into(), remedy: None, lack: None }
    }

    pub(super) fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { status: Status::Warn, found: found.into(), remedy: Some(remedy.into()), lack: None }
    }

    pub(super) fn fail(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { status: Status::Fail, ..Self::warn(found, remedy) }
    }

    pub(super) fn lacks(found: impl Into<String>, lack: Lack) -> Self {
        Finding { lack: Some(lack), ..Self::fail(found, "`firkin doctor --fix` installs it") }
    }

    pub(super) fn named(self, name: &'static str, why: &'static str) -> Check {
        Check { name, status: self.status, found: self.found, why, remedy: self.remedy, lack: self.lack }
    }
}

/// Looks a program up as the programs that we start are looked up, and where administrators' programs are.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|candidate| candidate.is_file())
}
