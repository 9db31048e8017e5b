//! Why a build was not taken, and why one that was taken failed. Sources carry the causes; a client is told the whole chain.

use firkin_causes::{chain, without_paths};
use firkin_engine::{Acceleration, MachineError};

use crate::{
    artifact::{IntegrityError, PublishError},
    capacity::TeamQuotaError,
    ground::{
        ids::ArtifactId,
        reference::{InvalidReference, NoTemplate},
    },
    host::disk::DiskPressure,
    images::ImageError,
    machine::{
        agent::AgentError,
        command::CommandError,
        engines::NoEngine,
        guest_file::PutError,
        launch::{BootError, Obituary},
    },
    restore::SnapshotRestoreError,
    store::StoreError,
};

pub use crate::storage::uploads::FilesError;

/// Why no place was made for a build.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not the form of a name, or of a tag.
    #[error(transparent)]
    Name(#[from] InvalidReference),
    /// Too many tags.
    #[error("a build cannot have more than {max} tags")]
    Tags {
        /// The most.
        max: usize,
    },
    /// No processor.
    #[error("validation error: CPU count must be at least 1")]
    FewCpus,
    /// Too many processors.
    #[error("CPU count must be at most {max}")]
    ManyCpus {
        /// The most.
        max: i64,
    },
    /// Three processors, for instance.
    #[error("CPU count must be 1 or an even number")]
    OddCpus,
    /// Too little memory.
    #[error("validation error: Memory must be at least {min_mib} MiB")]
    LittleMemory {
        /// The least.
        min_mib: i64,
    },
    /// Half of a page table's worth, for instance.
    #[error("Memory must be divisible by 2")]
    OddMemory,
    /// Less free space than none.
    #[error("Free disk must not be negative")]
    NegativeFreeDisk,
    /// More memory than the host gives to sandboxes.
    #[error("Memory can't be higher than {max_mib} MiB")]
    MuchMemory {
        /// What the host gives.
        max_mib: u64,
    },
    /// The store failed.
    #[error("cannot record the build")]
    Store(#[source] StoreError),
}

/// Why a build cannot be found or changed.
#[derive(Debug, thiserror::Error)]
pub enum NoBuild {
    /// Not the form of a build's id.
    #[error("Invalid build id")]
    Malformed,
    /// Nothing has this id.
    #[error("build '{build}' of template '{template}' not found")]
    NotFound {
        /// The template that was named.
        template: String,
        /// The build that was named.
        build: String,
    },
    /// It was started before.
    #[error("build '{0}' has been started already")]
    Started(String),
    /// The server is going away.
    #[error("the server is stopping")]
    Stopping,
    /// Its team has as much as it may.
    #[error(transparent)]
    TeamQuota(TeamQuotaError),
    /// The store failed.
    #[error("cannot record the build")]
    Store(#[source] StoreError),
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildFailure {
    /// Its team has as much as it may.
    #[error(transparent)]
    TeamQuota(#[from] TeamQuotaError),
    /// Its image is not to be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its template is not there.
    #[error(transparent)]
    NoTemplate(#[from] NoTemplate),
    /// Its template is of an engine that keeps disks otherwise.
    #[error("a template of {of} cannot become one of {wanted}: build it from its image with `--engine {}`", wanted.word())]
    OtherDisk {
        /// What the template runs on.
        of: Acceleration,
        /// What it was to run on.
        wanted: Acceleration,
    },
    /// The host does not have the engine that it is for.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// Its template, or a state that it was to go on from, is damaged.
    #[error("cannot use artifact `{artifact}`")]
    Artifact {
        /// Which.
        artifact: ArtifactId,
        /// Why.
        #[source]
        source: IntegrityError,
    },
    /// The disk has less free space than the floor.
    #[error("the disk is too full for a template build")]
    DiskPressure(#[source] DiskPressure),
    /// The disk fell below its floor while it wrote most.
    #[error(
        "the host's disk is below its free-space floor, and this build wrote most: it was ended; build it again once there is room"
    )]
    CrowdedOut,
    /// The disk of the source could not have that much free space if it were empty.
    #[error("the disk of the template has {disk_mib} MiB, and {asked_mib} MiB of it were asked to be free")]
    SmallDisk {
        /// Its size.
        disk_mib: u64,
        /// What was asked for.
        asked_mib: u64,
    },
    /// What was built leaves less free space than was asked for.
    #[error("the root file system of the template has {free_mib} MiB free, and at least {asked_mib} MiB were asked for")]
    LittleFreeDisk {
        /// What the guest found.
        free_mib: u64,
        /// What was asked for.
        asked_mib: u64,
    },
    /// The host has no room, or the machine was not restored.
    #[error("cannot start the machine of the build")]
    Restore(#[source] SnapshotRestoreError),
    /// The source does not boot.
    #[error("cannot boot the source of the build")]
    Boot(#[source] BootError),
    /// The guest ended while it was worked in.
    #[error("{0}")]
    Died(Obituary),
    /// A file cannot be put into the guest.
    #[error("cannot put a file into the template")]
    File(#[source] PutError),
    /// The image is not one that a sandbox can be made of.
    #[error("cannot make a sandbox of the image: {0}")]
    Provision(String),
    /// A step is not understood.
    #[error("cannot understand {kind} {args:?}: {reason}")]
    Malformed {
        /// Its kind.
        kind: String,
        /// Its arguments.
        args: Vec<String>,
        /// What is wrong.
        reason: &'static str,
    },
    /// A command failed.
    #[error("failed to run command '{command}'")]
    Command {
        /// As it was asked for.
        command: String,
        /// Why.
        #[source]
        source: CommandFailed,
    },
    /// A step that is not a command of the user failed.
    #[error("cannot {what}")]
    Step {
        /// What could not be done.
        what: String,
        /// Why.
        #[source]
        source: CommandFailed,
    },
    /// The files of a step are not those that it needs.
    #[error("cannot copy '{src}'")]
    Copy {
        /// What was to be copied.
        src: String,
        /// Why.
        #[source]
        source: super::copy::CopyError,
    },
    /// Files were not brought into the guest.
    #[error("cannot bring files into the guest")]
    Transfer(#[source] std::io::Error),
    /// The start command ended with a failure before the template was ready.
    #[error("the start command failed")]
    Start(#[source] CommandFailed),
    /// The template was not ready in time.
    #[error("the template was not ready within {} s", deadline.as_secs())]
    NotReady {
        /// The deadline.
        deadline: std::time::Duration,
        /// The last answer of the ready command.
        #[source]
        source: CommandFailed,
    },
    /// The guest did not answer.
    #[error("the guest of the build did not answer")]
    Guest(#[source] AgentError),
    /// The machine could not be cut.
    #[error("the machine of the build could not be cut")]
    Machine(#[source] MachineError),
    /// The artifact could not be written.
    #[error("the result of the build could not be written")]
    Publish(#[source] PublishError),
    /// The store failed.
    #[error("cannot record the build")]
    Store(#[source] StoreError),
    /// Its template was deleted meanwhile.
    #[error("the build was cancelled")]
    Cancelled,
    /// Whoever waited for it went away.
    #[error("the build was interrupted; build it again")]
    Abandoned,
    /// The server stopped.
    #[error("the server stopped before the build ended; build it again")]
    Stopping,
}

impl BuildFailure {
    /// What whoever asked for the build is told: all of it, but where this host failed, which of its files that was about.
    pub(crate) fn told(&self) -> String {
        let whole = chain(self);
        if self.is_of_this_host() { without_paths(&whole) } else { whole }
    }

    /// Whether paths in it are this host's, and not of the template, the image or the build's own commands.
    fn is_of_this_host(&self) -> bool {
        match self {
            Self::Image(_)
            | Self::Artifact { .. }
            | Self::DiskPressure(_)
            | Self::Restore(_)
            | Self::Boot(_)
            | Self::Transfer(_)
            | Self::Guest(_)
            | Self::Machine(_)
            | Self::Publish(_)
            | Self::Store(_) => true,
            Self::NoTemplate(_)
            | Self::TeamQuota(_)
            | Self::CrowdedOut
            | Self::SmallDisk { .. }
            | Self::LittleFreeDisk { .. }
            | Self::Died(_)
            | Self::NoEngine(_)
            | Self::OtherDisk { .. }
            | Self::File(_)
            | Self::Provision(_)
            | Self::Malformed { .. }
            | Self::Command { .. }
            | Self::Step { .. }
            | Self::Copy { .. }
            | Self::Start(_)
            | Self::NotReady { .. }
            | Self::Cancelled
            | Self::Abandoned
            | Self::Stopping => false,
        }
    }
}

impl From<BootError> for BuildFailure {
    fn from(error: BootError) -> Self {
        match error {
            BootError::Died(obituary) => Self::Died(obituary),
            error => Self::Boot(error),
        }
    }
}

/// Why a command in a guest did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CommandFailed {
    /// It ended with another status than 0.
    #[error("command failed: exit status {0}")]
    Exit(i32),
    /// It said why.
    #[error("{0}")]
    Said(String),
    /// envd refused it.
    #[error("command failed: {code}: {message}")]
    Refused {
        /// The code, e.g. `unauthenticated`.
        code: String,
        /// envd's words.
        message: String,
    },
    /// It has no end.
    #[error("command failed")]
    Broken(#[source] CommandError),
}

impl From<CommandError> for CommandFailed {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Rpc { code, message } => Self::Refused { code, message },
            other @ (CommandError::NotFound(_) | CommandError::Cut) => Self::Broken(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_builds_is_told_of_its_own_files_and_not_of_this_hosts() {
        let path = "/var/lib/firkin/artifacts/x".into();
        let failed = BuildFailure::Publish(PublishError::File { path, source: std::io::ErrorKind::StorageFull.into() });
        assert!(chain(&failed).contains("/var/lib"), "{failed:?}");
        assert_eq!(failed.told(), chain(&failed).replace("/var/lib/firkin/artifacts/x", "<path>"));
        let own = BuildFailure::Command { command: "cat /etc/none".into(), source: CommandFailed::Exit(1) };
        assert_eq!(own.told(), chain(&own));
    }
}
