//! What guests may want of gVisor, each by a name: what was found by trial, and what a build tells of itself.
//!
//! That programs of a clone hear of no connection that was gone before it was made cannot be tried: it is one clone in some hundreds. There a
//! build is taken at its word.

use std::{io, path::Path};

use firkin_cgroup::{Lack, Resource};

use super::{program, spec};

/// Something that guests may want of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub name: &'static str,
    /// Why it is not there.
    pub lacking: Option<String>,
}

/// Sandboxes start.
pub const START: &str = "start";
/// They stand still, and go on.
pub const PAUSE: &str = "pause";
/// They can be snapshot.
pub const CUT: &str = "cut";
/// A snapshot is a sandbox again.
pub const RESTORE: &str = "restore";
/// They reach, and are reached by, what their slot allows.
pub const NETWORK: &str = "network";
/// Programs with the setuid bit run as their owner.
pub const SETUID: &str = "setuid";
/// The root disk has the size that was asked for.
pub const DISK_SIZE: &str = "disk size";
/// A sandbox with connections to the outside can be cut.
pub const OPEN_CONNECTIONS: &str = "open connections";
/// Programs of a clone hear of no connection that was closed before the snapshot. The agent does not mind.
pub const EVENTS: &str = "events";
/// This host holds a sandbox to its memory. It is the host's affair, and without it nothing bounds what gVisor takes.
pub const LIMITS: &str = "limits";

/// What is asked of the command at each start and restore, as `runsc flags` lists it.
const DISCONNECT_FLAG: &str = "net-disconnect-ok";
/// The day of the first release that says it keeps connections, and what is told of them, in a checkpoint.
const KEEPS_EVENTS: u32 = 20_260_216;

/// What a build tells of itself, and this host of its limits. Blocks for the time of two short commands.
pub fn untried(program: &Path) -> io::Result<Vec<Capability>> {
    Ok(of_build(&program::version(program)?, &program::known_flags(program)?))
}

/// The same of a build that was asked already.
pub(super) fn of_build(version: &str, flags: &str) -> Vec<Capability> {
    let has = |flag: &str| flags.contains(flag);
    let no_setuid = "this build of `runsc` has no `--allow-suid`; `sudo` asks the agent instead";
    let no_disconnect = "this build of `runsc` has no `--net-disconnect-ok`";
    vec![
        Capability { name: SETUID, lacking: (!has(spec::SETUID_FLAG)).then(|| no_setuid.to_owned()) },
        Capability { name: OPEN_CONNECTIONS, lacking: (!has(DISCONNECT_FLAG)).then(|| no_disconnect.to_owned()) },
        Capability { name: EVENTS, lacking: tells_too_much(version) },
        Capability { name: LIMITS, lacking: no_limit_of_memory(&firkin_cgroup::look()) },
    ]
}

/// Why clones of this build may hear of what is gone.
fn tells_too_much(version: &str) -> Option<String> {
    match day_of(version) {
        Some(day) if day >= KEEPS_EVENTS => None,
        Some(_) => Some(
            "builds of before February 2026 tell some clones of connections that are gone, which programs on tokio take amiss"
                .to_owned(),
        ),
        None => Some(format!(
            "version `{version}` does not say of when it is, and builds of before February 2026 tell of what is gone"
        )),
    }
}

/// `20240729` of `0.0~20240729.0` and of `release-20240729.0`.
fn day_of(version: &str) -> Option<u32> {
    version.split(|letter: char| !letter.is_ascii_digit()).find(|digits| digits.len() == 8)?.parse().ok()
}

fn no_limit_of_memory(lacks: &[Lack]) -> Option<String> {
    let is_of_memory = |lack: &&Lack| match lack {
        Lack::Absent { resource } | Lack::Outside { resource, .. } | Lack::Refused { resource, .. } => {
            *resource == Resource::Memory
        }
        Lack::Setting { .. } | Lack::Server { .. } => false,
    };
    lacks.iter().find(is_of_memory).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking<'a>(found: &'a [Capability], name: &str) -> Option<&'a str> {
        found.iter().find(|one| one.name == name).unwrap().lacking.as_deref()
    }

    #[test]
    fn a_build_is_told_by_its_day_and_its_flags() {
        let debian = of_build("0.0~20240729.0", "  -net-disconnect-ok\n");
        assert!(lacking(&debian, EVENTS).unwrap().contains("are gone"));
        assert_eq!(lacking(&debian, OPEN_CONNECTIONS), None);
        assert!(lacking(&debian, SETUID).is_some());
        let newer = of_build("release-20260216.0", "  -allow-suid\n  -net-disconnect-ok\n");
        assert_eq!((lacking(&newer, EVENTS), lacking(&newer, SETUID)), (None, None));
        let unknown = of_build("VERSION_MISSING", "");
        assert!(lacking(&unknown, EVENTS).unwrap().contains("does not say"));
        assert!(lacking(&unknown, OPEN_CONNECTIONS).is_some());
    }

    #[test]
    fn only_a_lack_of_memory_limits_is_one_of_limits() {
        let absent = |resource| Lack::Absent { resource };
        assert_eq!(no_limit_of_memory(&[absent(Resource::Io), Lack::Setting { what: "reserve" }]), None);
        assert!(no_limit_of_memory(&[absent(Resource::Memory)]).unwrap().contains("memory"));
    }
}
