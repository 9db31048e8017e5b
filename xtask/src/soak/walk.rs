//! A user's life with sandboxes, from the first create to the last kill: what one lane of a cycle does.
//!
//! Every restored guest is asked for a file in memory and a process that were there before: a state that came from elsewhere, or
//! from an earlier time, is found by that.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{
    client::{Client, Sandbox, text},
    tally::{Ended, Tally},
};

/// What each sandbox keeps in its memory: a file there, and a process.
pub(super) const KEEP: (&str, &str) = ("echo kept >/dev/shm/kept; nohup sleep 100000 >/dev/null 2>&1 & echo started", "started");
/// Whether it still has them.
pub(super) const KEPT: (&str, &str) = ("cat /dev/shm/kept; pgrep -c sleep", "kept\n1");
/// Size of the file that is written and read.
const FILE_BYTES: usize = 256 << 10;
/// The name of what a sandbox has on its disk.
const FILE: &str = "/home/user/soak";

/// Who does it, and which of the rarer things are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) cycle: u64,
    pub(super) lane: u64,
    /// Drop the memory, and boot from the files.
    pub(super) reboots: bool,
    /// Build a template, and delete it.
    pub(super) builds: bool,
}

impl Lane {
    /// What is a name for this cycle and lane only.
    fn name(self, what: &str) -> String {
        format!("soak-{what}-{}-{}", self.cycle, self.lane)
    }
}

/// All of it. What is there when it ends early goes with it.
pub(super) fn walk(client: &Client, tally: &Tally, lane: Lane) -> Result<(), Ended> {
    let step = Steps { tally, cycle: lane.cycle };
    let first = step.run("create", || client.create("base"))?;
    step.run("first command", || first.expect(KEEP.0, KEEP.1))?;
    step.run("file", || first.file(FILE, &content(lane)))?;
    step.run("pause", || first.pause(true))?;
    step.run("resume", || first.resume())?;
    step.kept(&first)?;
    let fork = step.run("fork", || first.fork())?;
    step.kept(&fork)?;
    snapshots(client, &step, &first)?;
    step.run("kill", || fork.kill())?;
    if lane.reboots {
        step.run("pause, files only", || first.pause(false))?;
        step.run("resume by a boot", || first.resume())?;
        let script = format!("ls /dev/shm; stat -c %s {FILE}");
        step.run("command", || first.expect(&script, &FILE_BYTES.to_string()))?;
    }
    step.run("kill", || first.kill())?;
    let next = step.run("create", || client.create("base"))?;
    step.run("first command", || next.expect("ls /dev/shm; echo $((6 * 7))", "42"))?;
    step.run("kill", || next.kill())?;
    step.run("volume", || volume(client, &lane.name("volume")))?;
    step.run("secret", || secret(client, &lane.name("secret")))?;
    if lane.builds {
        template(client, &step, lane)?;
    }
    Ok(())
}

struct Steps<'a> {
    tally: &'a Tally,
    cycle: u64,
}

impl Steps<'_> {
    fn run<T>(&self, name: &str, body: impl FnOnce() -> anyhow::Result<T>) -> Result<T, Ended> {
        self.tally.step(self.cycle, name, body)
    }

    fn kept(&self, sandbox: &Sandbox<'_>) -> Result<(), Ended> {
        self.run("command", || sandbox.expect(KEPT.0, KEPT.1))
    }
}

/// A snapshot, what is created from it, and the way back to it.
fn snapshots(client: &Client, step: &Steps<'_>, sandbox: &Sandbox<'_>) -> Result<(), Ended> {
    let snapshot = step.run("snapshot", || sandbox.snapshot())?;
    step.run("command", || sandbox.expect("echo later >/dev/shm/later; echo written", "written"))?;
    step.run("rollback", || sandbox.rollback(&snapshot))?;
    step.run("command", || sandbox.expect("ls /dev/shm", "kept"))?;
    let second = step.run("create from a snapshot", || client.create(&snapshot))?;
    step.kept(&second)?;
    step.run("kill", || second.kill())?;
    step.run("delete a snapshot", || client.call("DELETE", &format!("/templates/{snapshot}"), None)).map(drop)
}

fn template(client: &Client, step: &Steps<'_>, lane: Lane) -> Result<(), Ended> {
    let (name, built) = (lane.name("template"), format!("for {}", lane.lane));
    step.run("template build", || client.build(&name, &format!("echo {built} >/home/user/built")))?;
    let sandbox = step.run("create from a template", || client.create(&name))?;
    step.run("first command", || sandbox.expect("cat /home/user/built", &built))?;
    step.run("kill", || sandbox.kill())?;
    step.run("delete a template", || client.call("DELETE", &format!("/templates/{name}"), None)).map(drop)
}

fn volume(client: &Client, name: &str) -> anyhow::Result<()> {
    let made = client.call("POST", "/volumes", Some(&json!({ "name": name })))?;
    let (id, token) = (text(&made, "/volumeID")?, text(&made, "/token")?);
    let (path, content) = (format!("/volumecontent/{id}/file?path=/a"), name.as_bytes().repeat(1000));
    client.content(("PUT", &path), &token, &content)?;
    let read = client.content(("GET", &path), &token, b"")?;
    ensure!(read == content, "a volume's file is not what was written");
    client.content(("DELETE", &format!("/volumecontent/{id}/path?path=/a")), &token, b"")?;
    client.call("DELETE", &format!("/volumes/{id}"), None).context("cannot delete the volume").map(drop)
}

fn secret(client: &Client, name: &str) -> anyhow::Result<()> {
    let made = client.call("POST", "/secrets", Some(&json!({ "name": name, "value": "first" })))?;
    let path = format!("/secrets/{}", text(&made, "/secretID")?);
    let updated = client.call("POST", &path, Some(&json!({ "value": "second" })))?;
    ensure!(updated["currentVersion"] == 2, "a secret that was changed once is {updated}");
    ensure!(!updated.to_string().contains("second"), "a secret's value was told");
    client.call("DELETE", &path, None).context("cannot delete the secret").map(drop)
}

/// Bytes that no other cycle and lane has.
fn content(lane: Lane) -> Vec<u8> {
    let mut state = lane.cycle.wrapping_mul(31).wrapping_add(lane.lane) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..FILE_BYTES).map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_lanes_write_the_same() {
        let lane = |cycle, lane| Lane { cycle, lane, reboots: false, builds: false };
        let written = [content(lane(1, 0)), content(lane(1, 1)), content(lane(2, 0))];
        assert!(written.iter().all(|content| content.len() == FILE_BYTES));
        assert!(written[0] != written[1] && written[0] != written[2]);
        assert_ne!(lane(1, 0).name("x"), lane(1, 1).name("x"));
    }
}
