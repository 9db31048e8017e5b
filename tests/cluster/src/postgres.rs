//! PostgreSQL on a host of its own: Debian's programs, as a user who is nobody, with a certificate, because it is another host's.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    household,
    schedule::Party,
    world::{World, address},
};

/// Whom Debian calls `nobody`: PostgreSQL refuses root.
const NOBODY: u32 = 65534;

/// From its start to its first answer.
const START: Duration = Duration::from_secs(120);

const PORT: u16 = 5432;

/// The server.
#[derive(Debug)]
pub(crate) struct Postgres {
    programs: PathBuf,
    dir: PathBuf,
    child: Child,
}

impl Postgres {
    /// Makes one in `dir` and starts it.
    pub(crate) fn start(world: &World, dir: &Path) -> anyhow::Result<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").context("the Debian package `postgresql` is not installed")?;
        let mut versions: Vec<PathBuf> = versions.filter_map(|entry| Some(entry.ok()?.path())).collect();
        versions.sort();
        let programs = versions.pop().context("the Debian package `postgresql` is not installed")?.join("bin");
        fs::create_dir(dir)?;
        let made =
            rcgen::generate_simple_self_signed([address(Party::Postgres).to_string()]).context("cannot make a certificate")?;
        fs::write(dir.join("certificate.pem"), made.cert.pem())?;
        fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?;
        fs::set_permissions(dir.join("key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        for path in [dir.to_owned(), dir.join("certificate.pem"), dir.join("key.pem")] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY))?;
        }
        let mut initdb = as_nobody(&programs.join("initdb"));
        initdb
            .args(["--username=firkin", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(dir.join("data"));
        ensure!(initdb.status()?.success(), "initdb failed");
        let rules = dir.join("data/pg_hba.conf");
        fs::write(&rules, "local all all trust\nhostssl all all 198.51.100.0/24 trust\n")?;
        let child = run(world, &programs, dir)?;
        let postgres = Self { programs, dir: dir.to_owned(), child };
        postgres.is_ready(world)?;
        Ok(postgres)
    }

    /// By what it proves who it is.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.join("certificate.pem")
    }

    /// Makes a database, and gives where it is.
    pub(crate) fn database(&self, name: &str) -> anyhow::Result<String> {
        let made = as_nobody(&self.programs.join("createdb")).arg("-h").arg(&self.dir).args(["-U", "firkin", name]).status()?;
        ensure!(made.success(), "createdb failed");
        Ok(format!("postgres://firkin@{}:{PORT}/{name}", address(Party::Postgres)))
    }

    /// What statements in a database of it answer, in its plainest form.
    pub(crate) fn ask(&self, database: &str, statements: &str) -> anyhow::Result<String> {
        let mut command = as_nobody(&self.programs.join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "firkin", "-d", database, "-h"]).arg(&self.dir);
        let output = command.args(["-c", statements]).stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        String::from_utf8(output.stdout).context("an answer is no text")
    }

    /// The time of a processor that it has spent, all of its processes together, those included that have ended.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let leader = i32::try_from(self.child.id())?;
        let mut ticks = 0;
        for (pid, fields) in household::children(leader)?.into_iter().map(|pid| (pid, 11..13)).chain([(leader, 11..15)]) {
            // A session may end while it is looked at; then it is counted with the first process.
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
            let spent = rest.split(' ').skip(fields.start).take(fields.len());
            ticks += spent.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>();
        }
        let each_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok());
        Ok(Duration::from_millis(ticks * 1000 / each_second.context("this host counts no ticks")?))
    }

    /// As by a power failure, but for the disk.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// What cost it most in a database, one statement a line: the part of all that statements took, how often it was asked, and what it is.
    pub(crate) fn dearest(&self, database: &str) -> anyhow::Result<String> {
        let dearest = "SELECT format('%s %% in %s of %s ms, %s', round((100 * took / sum(took) OVER ())::numeric, 1), calls,
                           round((took / calls)::numeric, 3), left(regexp_replace(query, '\\s+', ' ', 'g'), 150))
                       FROM (SELECT query, sum(calls) AS calls, sum(total_exec_time + total_plan_time) AS took
                           FROM pg_stat_statements GROUP BY query) AS statements ORDER BY took DESC LIMIT 12";
        self.ask(database, dearest)
    }

    pub(crate) fn start_again(&mut self, world: &World) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            self.child = run(world, &self.programs, &self.dir)?;
            // Sessions of the one that was killed may be ending still.
            match self.is_ready(world) {
                Ok(()) => return Ok(()),
                Err(error) if since.elapsed() > START => return Err(error),
                Err(_) => thread::park_timeout(Duration::from_millis(50)),
            }
        }
    }

    /// All of its processes: each session is one, in a group of its own. None begins once the first one was told.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let leader = i32::try_from(self.child.id())?;
        let before = household::children(leader)?;
        kill(Pid::from_raw(leader), signal).context("cannot signal PostgreSQL")?;
        for child in before.into_iter().chain(household::children(leader)?) {
            match kill(Pid::from_raw(child), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).context("cannot signal a session of PostgreSQL"),
            }
        }
        Ok(())
    }

    fn is_ready(&self, world: &World) -> anyhow::Result<()> {
        let since = Instant::now();
        let here = PathBuf::from(format!("/proc/{}", self.child.id()));
        while !world.on(Party::Postgres, || {
            Ok(as_nobody(&self.programs.join("pg_isready")).arg("-q").arg("-h").arg(&self.dir).status()?.success())
        })? {
            let is_dead = fs::read_to_string(here.join("stat")).map_or(true, |stat| stat.contains(") Z"));
            if is_dead || since.elapsed() > START {
                bail!("PostgreSQL does not start: {}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or_default());
        if kill(pid, Signal::SIGQUIT).is_ok() {
            drop(self.child.wait());
        }
    }
}

fn run(world: &World, programs: &Path, dir: &Path) -> anyhow::Result<Child> {
    let mut command = as_nobody(&programs.join("postgres"));
    command.arg("-D").arg(dir.join("data")).arg("-p").arg(PORT.to_string()).arg("-k").arg(dir);
    let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
    let settings = [
        "fsync=off".to_owned(),
        format!("listen_addresses={}", address(Party::Postgres)),
        "max_connections=300".to_owned(),
        "shared_buffers=16MB".to_owned(),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", certificate.display()),
        format!("ssl_key_file={}", key.display()),
        // A client that was cut off is noticed as a host's would be that is operated.
        "tcp_keepalives_idle=5".to_owned(),
        "tcp_keepalives_interval=2".to_owned(),
        "tcp_keepalives_count=3".to_owned(),
        "tcp_user_timeout=10000".to_owned(),
        "shared_preload_libraries=pg_stat_statements".to_owned(),
        "pg_stat_statements.track_planning=on".to_owned(),
    ];
    for setting in settings {
        command.arg("-c").arg(setting);
    }
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log"))?.into_parts().0;
    command.stderr(log).process_group(0);
    world.on(Party::Postgres, || command.spawn().context("cannot start PostgreSQL"))
}

fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    command
}
