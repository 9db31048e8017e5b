//! Progress that a build reports to its caller.
//!
//! A callback and not a channel: events are for a person's eyes, nothing waits for them and none is ever buffered. It is
//! called from the task that builds and must return at once.

use std::fmt;

/// Where progress goes.
pub type Report<'a> = &'a (dyn Fn(Event) + Send + Sync);

/// One step forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The part of the work.
    pub step: ImageStep,
    /// Details for a person: a package name, a file, a sentence.
    pub detail: String,
    /// How much of the step is done, where that is known.
    pub progress: Option<Progress>,
}

/// How much of a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Units done, at most `total`.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// The parts of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageStep {
    /// Another process builds the same thing.
    Wait,
    /// The package lists of this machine are refreshed.
    PackageLists,
    /// Packages are installed on this host.
    Host,
    /// The guest kernel.
    Kernel,
    /// The initramfs.
    Initramfs,
    /// The packages of the root file system.
    Packages,
    /// The Python packages of the root file system.
    Python,
    /// Node and programs for it.
    Node,
    /// The layers of a container image.
    Pull,
    /// The disk image of the root file system.
    Image,
}

impl fmt::Display for ImageStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageStep::Wait => "waiting",
            ImageStep::PackageLists => "package lists",
            ImageStep::Host => "host packages",
            ImageStep::Kernel => "guest kernel",
            ImageStep::Initramfs => "initramfs",
            ImageStep::Packages => "root file system",
            ImageStep::Python => "python packages",
            ImageStep::Node => "Node",
            ImageStep::Pull => "container image",
            ImageStep::Image => "disk image",
        })
    }
}

/// Reports a step of unknown length.
pub(crate) fn say(report: Report<'_>, step: ImageStep, detail: impl Into<String>) {
    report(Event { step, detail: detail.into(), progress: None });
}
