//! Whether a process was ended by the limit of memory of its group, which the kernel tells nobody: it counts, group by group, how many it
//! ended for that.
//!
//! Its group is another than ours, or nothing is concluded: in one that is shared it may have been anybody.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    Resource,
    detect::{self, Version},
};

/// A process's group, and how many of its processes were ended for want of memory when it was looked at.
#[derive(Debug, Clone)]
pub struct MemoryWatch {
    version: Version,
    dir: PathBuf,
    /// At the last look and at the one before it.
    ended: [u64; 2],
}

impl MemoryWatch {
    /// The group of the process `pid`, if it has a limit and this process is not in it. Reads files of the kernel, which blocks nobody.
    pub fn of(pid: u32) -> Option<Self> {
        let group = |pid: &str| detect::group_of(pid, Resource::Memory);
        let (own, its) = (group("self"), group(&pid.to_string())?);
        if own.is_some_and(|own| own.own == its.own) || its.own == its.mount {
            return None;
        }
        let mut watch = Self { version: its.version, dir: its.own, ended: [0; 2] };
        watch.look();
        watch.look();
        Some(watch)
    }

    /// Only what is ended after the look before this one counts from here on: what is just being ended was counted by the kernel, and its end
    /// is yet to be seen.
    pub fn look(&mut self) {
        let [last, _] = self.ended;
        self.ended = [ended(self.version, &self.dir).unwrap_or(last), last];
    }

    /// The group's limit in bytes, if one of its processes was ended for it lately. Also once all of them have ended, as long as there is the
    /// group.
    pub fn limit_reached(&self) -> Option<u64> {
        let [_, before] = self.ended;
        let reached = ended(self.version, &self.dir).ok()? > before;
        reached.then(|| limit(self.version, &self.dir)).flatten()
    }
}

fn ended(version: Version, dir: &Path) -> io::Result<u64> {
    let file = match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    let text = fs_err::read_to_string(dir.join(file))?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel does not count what it ends for want of memory"))
}

/// None: it has none, by the word `max` or by a number that is no memory's.
fn limit(version: Version, dir: &Path) -> Option<u64> {
    let file = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    let bytes: u64 = fs_err::read_to_string(dir.join(file)).ok()?.trim().parse().ok()?;
    (bytes < i64::MAX as u64 / 2).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count_what_was_ended_lately() {
        let files = [(Version::V1, "memory.oom_control", "memory.limit_in_bytes"), (Version::V2, "memory.events", "memory.max")];
        for (version, events, max) in files {
            let group = tempfile::tempdir().unwrap();
            let count = |n: u32| fs_err::write(group.path().join(events), format!("oom 9\noom_kill {n}\nunder_oom 0\n")).unwrap();
            fs_err::write(group.path().join(max), "805306368\n").unwrap();
            count(2);
            let mut watch = MemoryWatch { version, dir: group.path().to_owned(), ended: [0; 2] };
            assert_eq!(watch.limit_reached(), Some(768 << 20));
            watch.look();
            assert_eq!(watch.limit_reached(), Some(768 << 20), "it may just be ending");
            watch.look();
            assert_eq!(watch.limit_reached(), None, "that was before");
            count(3);
            assert_eq!(watch.limit_reached(), Some(768 << 20));
            for none in ["max", "9223372036854771712"] {
                fs_err::write(group.path().join(max), none).unwrap();
                assert_eq!(watch.limit_reached(), None, "{none} is no limit");
            }
            drop(group);
            watch.look();
            assert_eq!(watch.limit_reached(), None, "a group that is gone tells nothing");
        }
    }

    #[test]
    fn nothing_is_concluded_from_our_own_group() {
        assert!(MemoryWatch::of(std::process::id()).is_none());
    }
}
