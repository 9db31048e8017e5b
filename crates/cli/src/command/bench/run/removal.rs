//! Creates while the server removes what nobody needs, against creates while it has nothing else to do.
//!
//! Artifacts that no record names are put where the server keeps its own, all at once, and the end of a sandbox has it collect.
//! Each sample is a create that begins with the end of the sandbox before it, in both series, so that they differ in nothing but
//! what is being removed. The series take turns, round by round: what the host does besides meets both.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use fs_err as fs;
use rustix::fs::{FallocateFlags, fallocate, syncfs};

use super::{Dead, Run, host, series};
use crate::{args::bench::DeadFiles, command::bench::report, failure::Advise as _, output};

/// Removal of what a round brought takes this long at most; a disk frees some hundred gigabytes in less.
const REMOVED_DEADLINE: Duration = Duration::from_secs(600);

/// Between two looks at what is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Run<'_> {
    /// Takes as many samples of either kind as the plan says.
    pub(super) async fn removals(&mut self, dead: Dead) -> anyhow::Result<()> {
        let pile = self.pile(dead)?;
        // Whatever is read for the first time is read now.
        let first = self.bare_create().await.context("cannot create a first sandbox")?;
        self.kill(&first.sandbox_id).await?;
        let (mut taken, samples) = (0, self.plan.samples);
        // The first row is what the second is measured by.
        series(&mut self.figures, report::IDLE);
        let step = self.progress.step("creates while artifacts are removed");
        while taken < samples {
            step.at(&format!("{taken} of {samples}"));
            let making = pile.clone();
            let drafts = tokio::task::spawn_blocking(move || making.drafts()).await??;
            let goes_on = |more: u32| taken + more < samples && host::left_of(&pile.dir, &pile.prefix) > 0;
            let more = self.creates(report::REMOVING, || drafts.place(), goes_on).await?;
            pile.gone().await?;
            self.creates(report::IDLE, || Ok(()), |idle| idle < more).await?;
            taken += more;
        }
        step.done(&format!("{samples} creates while artifacts are removed, and as many while none are"));
        Ok(())
    }

    fn pile(&self, dead: Dead) -> anyhow::Result<Pile> {
        let state_dir =
            self.state_dir.ok_or_else(|| anyhow!("cannot give the server artifacts to remove: its files are not here"));
        let state_dir = state_dir.hint("measure a server of this host, by its state directory")?;
        Ok(Pile { dir: state_dir.join("artifacts"), prefix: format!("bench-{}-", self.mark), dead })
    }

    /// Creates one sandbox after the other for as long as `goes_on` says, given how many there were, but one at least. Each begins
    /// with the end of the one before; `first` is done before all of them. Gives how many there were.
    async fn creates(
        &mut self,
        name: &str,
        first: impl FnOnce() -> anyhow::Result<()>,
        goes_on: impl Fn(u32) -> bool,
    ) -> anyhow::Result<u32> {
        let mut before = self.bare_create().await?.sandbox_id;
        first()?;
        let mut taken = 0;
        loop {
            let begun = Instant::now();
            let create = async { self.bare_create().await.map(|sandbox| (sandbox.sandbox_id, begun.elapsed())) };
            let (created, killed) = tokio::join!(create, self.kill(&before));
            let took;
            (before, took) = created?;
            killed?;
            self.take(name, took);
            taken += 1;
            if !goes_on(taken) {
                self.kill(&before).await?;
                return Ok(taken);
            }
        }
    }
}

/// Where dead artifacts go, and what they are.
#[derive(Debug, Clone)]
struct Pile {
    dir: PathBuf,
    /// Begins their names.
    prefix: String,
    dead: Dead,
}

impl Pile {
    /// Makes dead artifacts that the server does not see yet. Blocks.
    fn drafts(&self) -> anyhow::Result<Drafts> {
        let mut drafts = Drafts { dir: self.dir.clone(), names: Vec::new() };
        for n in 0..self.dead.artifacts {
            let name = format!("{}{n}", self.prefix);
            let dir = drafts.hidden(&name);
            drafts.names.push(name);
            let made = self.fill(&dir).with_context(|| format!("cannot make artifact `{}`", dir.display()));
            made.hint("`--dead-mib` makes them smaller, `--dead-files sparse` needs no room at all")?;
        }
        self.sync()?;
        Ok(drafts)
    }

    fn fill(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)?;
        let (mut memory, bytes) = (fs::File::create(dir.join("memory"))?, u64::from(self.dead.mib) << 20);
        match self.dead.files {
            DeadFiles::Sparse => memory.set_len(bytes),
            DeadFiles::Allocated => Ok(fallocate(memory.file(), FallocateFlags::empty(), 0, bytes)?),
            DeadFiles::Written => {
                let part = vec![1; 1 << 20];
                (0..self.dead.mib).try_for_each(|_| memory.write_all(&part))
            }
        }
    }

    /// Waits until the disk has all that was written: what is still to be written must not meet the next samples. Blocks.
    fn sync(&self) -> anyhow::Result<()> {
        let synced = fs::File::open(&self.dir).and_then(|dir| Ok(syncfs(dir.file())?));
        synced.context("cannot sync the file system of the state directory")
    }

    /// Waits until all of them are gone, on the disk too.
    async fn gone(&self) -> anyhow::Result<()> {
        let end = Instant::now() + REMOVED_DEADLINE;
        loop {
            let left = host::left_of(&self.dir, &self.prefix);
            if left == 0 {
                break;
            }
            ensure!(Instant::now() < end, "the server has not removed {left} of {} artifacts", self.dead.artifacts);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let pile = self.clone();
        tokio::task::spawn_blocking(move || pile.sync()).await?
    }
}

/// Artifacts under names that the server takes for drafts. Those that are not placed go on drop.
struct Drafts {
    dir: PathBuf,
    names: Vec<String>,
}

impl Drafts {
    fn hidden(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".new-{name}"))
    }

    /// Makes them artifacts that no record names.
    fn place(mut self) -> anyhow::Result<()> {
        while let Some(name) = self.names.last() {
            fs::rename(self.hidden(name), self.dir.join(name))?;
            self.names.pop();
        }
        Ok(())
    }
}

impl Drop for Drafts {
    fn drop(&mut self) {
        for dir in self.names.iter().map(|name| self.hidden(name)) {
            if let Err(error) = fs::remove_dir_all(&dir)
                && error.kind() != io::ErrorKind::NotFound
            {
                output::note(&format!("the next start of the server removes what is left: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_artifacts_are_seen_once_they_are_placed_and_drafts_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let names = || host::artifacts(dir.path());
        for files in [DeadFiles::Sparse, DeadFiles::Allocated, DeadFiles::Written] {
            let artifacts = dir.path().join("artifacts");
            fs::create_dir(&artifacts).unwrap();
            let pile = Pile { dir: artifacts.clone(), prefix: "bench-1-".to_owned(), dead: Dead { artifacts: 2, mib: 1, files } };
            drop(pile.drafts().unwrap());
            assert_eq!(fs::read_dir(&artifacts).unwrap().count(), 0);
            let drafts = pile.drafts().unwrap();
            assert_eq!((names().len(), host::left_of(&artifacts, "bench-1-")), (0, 0));
            drafts.place().unwrap();
            assert_eq!((names().len(), host::left_of(&artifacts, "bench-1-")), (2, 2));
            let taken = host::artifact_mib(dir.path(), "bench-1-0").unwrap();
            assert_eq!(taken >= 1.0, files != DeadFiles::Sparse, "{files:?}: {taken}");
            // As the server takes a name before it removes anything.
            fs::rename(artifacts.join("bench-1-0"), artifacts.join(".bench-1-0")).unwrap();
            assert_eq!((names().len(), host::left_of(&artifacts, "bench-1-")), (1, 2));
            fs::remove_dir_all(&artifacts).unwrap();
        }
    }
}
