//! What a run has started and where it may leave things, so that it can tell its own from what others do on the same host.
//!
//! A machine outlives its server, and has neither its environment, nor its session, nor its user. What it cannot shed is its
//! descent: a *keeper* stands above the run as the child subreaper, so that whatever loses its parent below becomes a child of
//! the keeper and not of `init`. It also buries the dead among those, as `init` would. Places are told by the run's own
//! directory, which is `TMPDIR` and [`DIRECTORY`] for all below; the keeper makes it before the run and removes it after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use fs_err as fs;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getppid, setpgid},
};
use tempfile::TempDir;

use crate::{
    interrupt::{ASKED_TO_END, on_each},
    run::say,
};

/// Names the directory of a run to everything below it: where tests make state directories.
pub(crate) const DIRECTORY: &str = "FIRKIN_TEST_DIR";

/// Names the keeper to the run that it keeps.
const KEEPER: &str = "FIRKIN_XTASK_KEEPER";

/// A run's own processes and places.
#[derive(Debug, Clone)]
pub(crate) struct Household {
    keeper: u32,
    directory: PathBuf,
}

impl Household {
    /// The household that this process is in: `None` where nobody keeps it yet.
    pub(crate) fn ours() -> anyhow::Result<Option<Self>> {
        let parent = getppid().as_raw().unsigned_abs();
        // An outer run's variables say nothing about this one.
        let kept = std::env::var(KEEPER).is_ok_and(|keeper| keeper == parent.to_string());
        let Some(directory) = std::env::var_os(DIRECTORY).filter(|_| kept) else { return Ok(None) };
        // Nobody is left to stop what a run without its keeper would go on with.
        prctl::set_pdeathsig(Signal::SIGTERM).context("cannot ask to end with the keeper")?;
        Ok(Some(Self { keeper: parent, directory: directory.into() }))
    }

    /// The household below another process.
    #[cfg(test)]
    pub(crate) fn of(self, keeper: u32, directory: &Path) -> Self {
        Self { keeper, directory: directory.to_owned() }
    }

    /// The directory of this run.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Has the run end when it comes to that, instead of at once, if its keeper is asked to end: from now on no terminal's Ctrl-C
    /// reaches it, or what it starts.
    pub(crate) fn heed_wishes(&self) -> anyhow::Result<Wish> {
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).context("cannot make a process group")?;
        let wish = self.wish();
        fs::write(wish.is_heeded(), "")?;
        Ok(wish)
    }

    pub(crate) fn wish(&self) -> Wish {
        Wish { directory: self.directory.clone() }
    }

    /// A directory of this run that machines' users may pass through, removed when it is dropped.
    pub(crate) fn passable_dir(&self, prefix: &str) -> anyhow::Result<TempDir> {
        passable_dir(&self.directory, prefix)
    }

    /// Whether something at this path was made by this run.
    pub(crate) fn made(&self, path: impl AsRef<Path>) -> bool {
        path.as_ref().starts_with(&self.directory)
    }

    /// The living processes below the keeper, the run itself included.
    pub(crate) fn processes(&self) -> anyhow::Result<BTreeSet<u32>> {
        let mut parents = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while it is looked at: what cannot be read is gone.
            if let Some(parent) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(parent) {
                parents.insert(pid, parent);
            }
        }
        Ok(descendants(self.keeper, &parents))
    }
}

/// That a run may end, as somebody has asked its keeper.
///
/// A run that does nothing about it ends by the signal, as any program. One that has said so is told by a file, and ends after the
/// step that is under way.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    directory: PathBuf,
}

impl Wish {
    fn is_heeded(&self) -> PathBuf {
        self.directory.join("heeds-wishes")
    }

    fn file(&self) -> PathBuf {
        self.directory.join("is-to-end")
    }

    /// Whether somebody has asked.
    pub(crate) fn is_there(&self) -> bool {
        self.file().exists()
    }

    /// The keeper's part.
    fn pass_on(&self, signal: Signal, run: Pid) -> anyhow::Result<()> {
        if !self.is_heeded().exists() {
            return kill(run, signal).context("cannot signal it");
        }
        say(&format!("{signal}: ending after the step that is under way"));
        self.make()
    }

    /// Leaves the wish.
    pub(crate) fn make(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.file(), "")?)
    }
}

/// Machines run as users of their own, who must be able to enter it: `parent` must not be below a home directory.
fn passable_dir(parent: &Path, prefix: &str) -> anyhow::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(parent).context("cannot make a directory")?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711))?;
    Ok(dir)
}

/// The parent of a living process, from its `stat`. The dead only wait for being buried.
fn parent(stat: &str) -> Option<u32> {
    // The name stands in brackets and may hold anything, brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    fields.next()?.parse().ok().filter(|_| state != "Z" && state != "X")
}

fn descendants(root: u32, parents: &BTreeMap<u32, u32>) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let more: Vec<u32> =
            parents.iter().filter(|(pid, parent)| found.contains(parent) && !found.contains(pid)).map(|(&pid, _)| pid).collect();
        if more.is_empty() {
            found.remove(&root);
            return found;
        }
        found.extend(more);
    }
}

/// Runs this program again, with the same arguments, below a keeper, and ends as that does.
pub(crate) fn keep() -> anyhow::Result<ExitCode> {
    prctl::set_child_subreaper(true).context("cannot become the parent of orphans")?;
    // Below it is the `TMPDIR` of everything, also of programs that run as other users: not below a home directory.
    let directory = passable_dir(Path::new("/var/tmp"), "firkin-test-")?;
    let temporary = directory.path().join("tmp");
    fs::create_dir(&temporary)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o1777))?;
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    let run = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(KEEPER, std::process::id().to_string())
        .env(DIRECTORY, directory.path())
        .env("TMPDIR", &temporary)
        .spawn()
        .context("cannot start the run")?;
    let run = Pid::from_raw(i32::try_from(run.id()).context("a process id is an i32")?);
    let wish = Wish { directory: directory.path().to_owned() };
    on_each(&ASKED_TO_END, move |signal| {
        if let Err(error) = wish.pass_on(signal, run) {
            say(&format!("cannot pass {signal} on to the run: {error:#}"));
        }
    })?;
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == run => {
                return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::Signaled(pid, ..)) if pid == run => return Ok(ExitCode::FAILURE),
            // An orphan of the run, or no news.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the run"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _,
        process::{Child, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    /// The household of this test process, with a directory of its own.
    pub(crate) fn of_this_process(directory: &Path) -> Household {
        Household { keeper: std::process::id(), directory: directory.to_owned() }
    }

    /// A program of the product's by its name, which waits for the end of its input.
    pub(crate) fn named(directory: &Path) -> PathBuf {
        let program = directory.join("firkin-vm");
        // Not a copy: one that is just made cannot be run while a process that another test is starting has it open for writing.
        std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
        program
    }

    pub(crate) fn waiting(program: &Path) -> Child {
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn only_descendants_belong_to_a_household() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 5)]);
        assert_eq!(descendants(2, &parents), BTreeSet::from([3, 4]));
        assert_eq!(descendants(1, &parents).len(), 5);
        assert_eq!(parent("7 (a) b) S 3 7 7 0"), Some(3));
        assert_eq!(parent("7 (dead) Z 3 7 7 0"), None);
    }

    #[test]
    fn a_run_is_told_by_a_file_only_if_it_looks_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let wish = of_this_process(dir.path()).wish();
        let mut run = waiting(Path::new("/bin/cat"));
        let pid = Pid::from_raw(run.id().try_into().unwrap());
        fs::write(wish.is_heeded(), "").unwrap();
        wish.pass_on(Signal::SIGTERM, pid).unwrap();
        assert!(wish.is_there() && run.try_wait().unwrap().is_none());
        fs::remove_file(wish.is_heeded()).unwrap();
        wish.pass_on(Signal::SIGTERM, pid).unwrap();
        assert_eq!(run.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn a_process_that_lost_its_parent_stays_in_the_household() {
        prctl::set_child_subreaper(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let household = of_this_process(dir.path());
        let (fifo, told) = (dir.path().join("fifo"), dir.path().join("told"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Of a session of its own and with nothing in its environment, as machines are, and its parent ends at once.
        let script = format!("setsid env -i {} <>{} & echo $! >{}", named(dir.path()).display(), fifo.display(), told.display());
        assert!(Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).status().unwrap().success());
        let pid: u32 = fs::read_to_string(&told).unwrap().trim().parse().unwrap();
        let orphan = Pid::from_raw(i32::try_from(pid).unwrap());
        let found = household.processes().unwrap().contains(&pid);
        nix::sys::signal::kill(orphan, Signal::SIGKILL).unwrap();
        waitpid(orphan, None).unwrap();
        assert!(found, "{pid} is not among {:?}", household.processes());
        // It is gone once it is dead.
        let deadline = Instant::now() + Duration::from_secs(60);
        while household.processes().unwrap().contains(&pid) {
            assert!(Instant::now() < deadline);
        }
    }
}
