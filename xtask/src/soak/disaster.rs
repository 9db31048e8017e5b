//! What happens to servers: they are killed, and so are their machines.

use std::path::Path;

use anyhow::{Context as _, ensure};
use fs_err as fs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    client::{Client, Sandbox},
    walk::{KEEP, KEPT},
};

/// Kills every machine of the server, those of the pool too: sandboxes end, and the next ones have what they need.
pub(super) fn machines_die(client: &Client, state_dir: &Path) -> anyhow::Result<()> {
    let sandbox = client.create("base")?;
    sandbox.expect(KEEP.0, KEEP.1)?;
    let machines = machines(state_dir)?;
    ensure!(!machines.is_empty(), "a sandbox has no machine");
    for machine in machines {
        kill(machine, Signal::SIGKILL).with_context(|| format!("cannot kill machine {machine}"))?;
    }
    sandbox.expect_gone().context("after the machines were killed")?;
    let next = client.create("base").context("after the machines were killed")?;
    next.expect("ls /dev/shm; echo $((6 * 7))", "42")?;
    next.kill()
}

/// The machines that have a directory, the pool's too.
fn machines(state_dir: &Path) -> anyhow::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(state_dir.join("run"))? {
        // A machine that is being started has none yet, and one that ends has none any more.
        let Ok(text) = fs::read_to_string(entry?.path().join("instance.json")) else { continue };
        let told: Value = serde_json::from_str(&text).context("cannot understand `instance.json`")?;
        let pid = told.pointer("/pid").and_then(Value::as_i64).context("`instance.json` has no pid")?;
        pids.push(Pid::from_raw(i32::try_from(pid).context("a process id is an i32")?));
    }
    Ok(pids)
}

/// Sandboxes that outlive a server: one runs, one is paused.
#[derive(Debug)]
pub(super) struct Survivors<'a> {
    running: Sandbox<'a>,
    paused: Sandbox<'a>,
}

impl<'a> Survivors<'a> {
    pub(super) fn prepare(client: &'a Client) -> anyhow::Result<Self> {
        let (running, paused) = (client.create("base")?, client.create("base")?);
        running.expect(KEEP.0, KEEP.1)?;
        paused.expect(KEEP.0, KEEP.1)?;
        paused.pause(true)?;
        Ok(Self { running, paused })
    }

    /// Fails unless the next server has them both as they were, and works.
    pub(super) fn check(self, client: &Client) -> anyhow::Result<()> {
        let Self { running, paused } = self;
        running.expect(KEPT.0, KEPT.1).context("the sandbox that ran when the server was killed")?;
        paused.resume().context("the sandbox that was paused when the server was killed")?;
        paused.expect(KEPT.0, KEPT.1).context("the sandbox that was paused when the server was killed")?;
        running.kill()?;
        paused.kill()?;
        let next = client.create("base")?;
        next.expect("ls /dev/shm; echo $((6 * 7))", "42")?;
        next.kill()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_found_by_what_their_directories_say() {
        let dir = tempfile::tempdir().unwrap();
        for (instance, text) in [("a", Some(r#"{"version":1,"pid":7,"uid":1}"#)), ("b", None), ("c", Some(r#"{"pid":8}"#))] {
            let path = dir.path().join("run").join(instance);
            fs::create_dir_all(&path).unwrap();
            if let Some(text) = text {
                fs::write(path.join("instance.json"), text).unwrap();
            }
        }
        let mut found: Vec<i32> = machines(dir.path()).unwrap().into_iter().map(Pid::as_raw).collect();
        found.sort_unstable();
        assert_eq!(found, [7, 8]);
    }
}
