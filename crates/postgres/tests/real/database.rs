//! A PostgreSQL of one test: in a directory of its own, as a user who is nobody, and gone with the test, also when that is killed.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{prctl, signal::Signal};
use tokio::net::TcpSocket;

/// Whom Debian calls `nobody`: PostgreSQL refuses root.
const NOBODY: u32 = 65534;

/// From its start to its first answer.
const START: Duration = Duration::from_secs(30);

/// One server with its databases.
pub(crate) struct Cluster {
    programs: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    /// Bound, and nothing else: nobody is given the port while it is started, or started again.
    #[expect(dead_code, reason = "held, not used")]
    held: TcpSocket,
    child: Child,
}

/// A port that is ours. Whoever allows others beside him, as PostgreSQL does, can listen at it.
fn held_port() -> (TcpSocket, u16) {
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    (held, port)
}

/// Debian's programs of the newest version that is installed.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<_> =
        std::fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    versions.sort();
    versions.pop().map(|version| version.join("bin")).filter(|bin| bin.join("initdb").exists())
}

fn as_nobody(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    command
}

impl Cluster {
    /// None where Debian's package is not installed; the test says so.
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("skipped: the Debian package `postgresql` is not installed");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("firkin-postgres-").tempdir_in("/var/tmp").unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = as_nobody(programs.join("initdb"))
            .args(["--username=firkin", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(dir.path().join("data"))
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        let (held, port) = held_port();
        let child = run(&programs, dir.path(), port);
        Some(Self { programs, dir, port, held, child })
    }

    /// An asynchronous standby of this one, as Debian's own programs make it.
    pub(crate) fn standby(&self) -> Self {
        let programs = self.programs.clone();
        let dir = tempfile::Builder::new().prefix("firkin-standby-").tempdir_in("/var/tmp").unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let copied = as_nobody(programs.join("pg_basebackup"))
            .args([
                "--host=127.0.0.1",
                "--username=firkin",
                "--no-password",
                "--checkpoint=fast",
                "--no-sync",
                "--write-recovery-conf",
                "-D",
            ])
            .arg(dir.path().join("data"))
            .arg(format!("--port={}", self.port))
            .status();
        assert!(copied.unwrap().success(), "pg_basebackup failed");
        let (held, port) = held_port();
        let child = run(&programs, dir.path(), port);
        Self { programs, dir, port, held, child }
    }

    /// Has a standby that was stopped be the database, where another one was that is gone.
    pub(crate) fn promote_at(&mut self, port: u16) {
        self.port = port;
        self.child = run(&self.programs, self.dir.path(), port);
        let promoted =
            as_nobody(self.programs.join("pg_ctl")).args(["promote", "--wait", "-D"]).arg(self.dir.path().join("data")).status();
        assert!(promoted.unwrap().success(), "pg_ctl promote failed");
    }

    /// What the server answers, as a text.
    pub(crate) async fn answer(&self, statement: &str) -> Option<String> {
        self.answer_of("postgres", statement).await
    }

    /// What one of its databases answers, as a text.
    pub(crate) async fn answer_of(&self, name: &str, statement: &str) -> Option<String> {
        let url = format!("postgres://firkin@127.0.0.1:{}/{name}", self.port);
        let (client, driven) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        let driven = tokio::spawn(driven);
        let row = client.query_one(statement, &[]).await.unwrap();
        drop(client);
        driven.await.unwrap().unwrap();
        row.get(0)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes a database, and gives where it is.
    pub(crate) fn database(&self, name: &str) -> String {
        let made = as_nobody(self.programs.join("createdb"))
            .args(["--host=127.0.0.1", "--username=firkin", "--no-password"])
            .arg(format!("--port={}", self.port))
            .arg(name)
            .status();
        assert!(made.unwrap().success(), "createdb failed");
        format!("postgres://firkin@127.0.0.1:{}/{name}", self.port)
    }

    /// Does something to a database behind the server's back.
    pub(crate) async fn sql(&self, name: &str, statement: &str) {
        let url = format!("postgres://firkin@127.0.0.1:{}/{name}", self.port);
        let (client, driven) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        let driven = tokio::spawn(driven);
        client.batch_execute(statement).await.unwrap();
        drop(client);
        driven.await.unwrap().unwrap();
    }

    /// As by a power failure, but for the disk.
    pub(crate) fn kill(&mut self) {
        let sessions = fs_err::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id())).unwrap();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // They notice by themselves that it is gone; until then one of them may do what it is asked.
        let is_there = |pid: &str| fs_err::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        let since = Instant::now();
        while sessions.split_whitespace().any(is_there) {
            assert!(since.elapsed() < Duration::from_secs(60), "sessions of a database that was killed go on");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    pub(crate) fn start_again(&mut self) {
        self.child = run(&self.programs, self.dir.path(), self.port);
    }
}

/// Starts it and waits for its first answer. One that was killed may be refused for as long as its sessions end.
fn run(programs: &Path, dir: &Path, port: u16) -> Child {
    let started = Instant::now();
    loop {
        let mut command = as_nobody(programs.join("postgres"));
        command.arg("-D").arg(dir.join("data")).arg("-p").arg(port.to_string()).arg("-k").arg(dir);
        for setting in ["fsync=off", "listen_addresses=127.0.0.1", "max_connections=100", "shared_buffers=16MB"] {
            command.args(["-c", setting]);
        }
        // SAFETY: the call is one system call, of the child alone.
        #[expect(unsafe_code, reason = "it ends with the test, also when that is killed")]
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGINT).map_err(Into::into));
        }
        let mut child = command.spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            let ready =
                as_nobody(programs.join("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p"]).arg(port.to_string()).status();
            if ready.unwrap().success() {
                return child;
            }
            assert!(started.elapsed() < START, "PostgreSQL does not answer");
            thread::park_timeout(Duration::from_millis(20));
        }
        assert!(started.elapsed() < START, "PostgreSQL does not start");
        thread::park_timeout(Duration::from_millis(50));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // At once; what it was asked for is over.
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGQUIT).ok();
        self.child.wait().ok();
    }
}
