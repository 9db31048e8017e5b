//! The warden on real processes: it stops what is listed when the deadline passes, whatever became of the server, and nothing else.
//!
//! The warden and the server that is killed are this program again, in roles that an environment variable names. Machines are processes that
//! sleep. States are read from `/proc/PID/stat` and waited for.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and its roles say how far they are")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use firkin_warden::{End, Page, ProcessId, Renewal, clock, run, spawn};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use nix::{
    fcntl::OFlag,
    sys::{
        prctl,
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

/// Which role this process has, and of which directory.
const ROLE: &str = "FIRKIN_WARDEN_TEST_ROLE";
const DIR: &str = "FIRKIN_WARDEN_TEST_DIR";

/// By then everything has come about, on a host that is busy too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lease that no test outlives, and one that is over soon, but not before a busy host has begun to watch.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(2);

#[test]
fn role() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    match role.to_str().unwrap() {
        "warden" => match run(&dir.join("page")) {
            Ok(End::Ordered | End::NobodyLeft) => {}
            Err(error) => panic!("{error:?}"),
        },
        "server" => serve(&dir),
        other => panic!("{other}"),
    }
}

/// A server whose lease is short, and is renewed for as long as it runs. It takes the page over.
fn serve(dir: &Path) {
    let mut page = Page::open(dir).unwrap();
    println!("serving");
    loop {
        let deadline = clock::now() + SHORT;
        if page.set_deadline(deadline).unwrap() == Renewal::TooLate {
            page.regain(deadline).unwrap();
        }
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn in_role(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role", "--nocapture"]).env(ROLE, role).env(DIR, dir);
    command
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    /// A machine: it sleeps.
    fn machine() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sleep", "3600"]).stdin(Stdio::null());
        let running = Self(command.spawn().unwrap());
        // It has its own name once it is what it is to be.
        wait_for("a machine to begin", || fs_err::read_to_string(format!("/proc/{}/comm", running.pid())).unwrap() == "sleep\n");
        running
    }

    fn server(dir: &Path) -> Self {
        let mut child = in_role("server", dir).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("serving")), "the server ended");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn id(&self) -> ProcessId {
        ProcessId::of(self.pid()).unwrap()
    }

    /// The letter of its state.
    fn state(&self) -> char {
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    fn is_stopped_soon(&self) {
        wait_for("a machine to be stopped", || self.state() == 'T');
    }

    fn goes_on_soon(&self) {
        wait_for("a machine to go on", || self.state() == 'S');
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().unwrap();
    }
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited for {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// A directory with a page and a warden, which ends with it.
struct Bench {
    dir: tempfile::TempDir,
    page: Page,
}

impl Bench {
    /// Whose lease is for so long, and has been read by the warden.
    fn watched(lease: Duration, machines: &[(&str, &[ProcessId])]) -> Self {
        let bench = Self::unwatched(lease, machines);
        spawn(in_role("warden", bench.dir.path()), &bench.page.path()).unwrap();
        bench
    }

    /// The same without a warden.
    fn unwatched(lease: Duration, machines: &[(&str, &[ProcessId])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut page = Page::create(dir.path(), clock::now() + lease).unwrap();
        for (name, processes) in machines {
            page.list(name, processes).unwrap();
        }
        Self { dir, page }
    }

    /// Once the warden has stopped everything that is to be stopped.
    fn is_over(&self) {
        wait_for("the warden to say so", || self.page.stopped_in() == Some(self.page.generation()));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The page may be what was spoilt.
        let mut page = Page::create(self.dir.path(), clock::now() + LONG).unwrap();
        page.end().unwrap();
        wait_for("the warden to end", || !page.is_watched().unwrap());
    }
}

#[test]
fn what_is_listed_is_stopped_and_everything_else_runs_on() {
    let [listed, second, unlisted, reused] = std::array::from_fn(|_| Running::machine());
    // Its pid is that of a process which was started at another time.
    let another = ProcessId { start_ticks: reused.id().start_ticks - 1, ..reused.id() };
    let bench = Bench::watched(SHORT, &[("a", &[listed.id(), second.id()]), ("b", &[another])]);
    bench.is_over();
    listed.is_stopped_soon();
    second.is_stopped_soon();
    assert_eq!((unlisted.state(), reused.state()), ('S', 'S'));
}

#[test]
fn what_is_listed_after_the_deadline_is_stopped_too() {
    let mut bench = Bench::watched(Duration::ZERO, &[]);
    bench.is_over();
    let machine = Running::machine();
    bench.page.list("late", &[machine.id()]).unwrap();
    machine.is_stopped_soon();
}

#[test]
fn a_deadline_that_is_put_off_in_time_stops_nothing() {
    let machine = Running::machine();
    let mut bench = Bench::watched(Duration::from_secs(10), &[("a", &[machine.id()])]);
    let first = bench.page.deadline();
    assert_eq!(bench.page.set_deadline(clock::now() + LONG).unwrap(), Renewal::InTime, "a host that takes ten seconds for this");
    // Past the first deadline, and past what the warden waits for a page that it cannot read.
    wait_for("the first deadline to pass", || clock::now() > first + Duration::from_secs(3));
    assert_eq!((machine.state(), bench.page.stopped_in()), ('S', None));
}

#[test]
fn machines_go_on_by_order_alone_and_only_those_that_are_still_listed() {
    let [kept, lost] = std::array::from_fn(|_| Running::machine());
    let mut bench = Bench::watched(SHORT, &[("kept", &[kept.id()]), ("lost", &[lost.id()])]);
    bench.is_over();
    assert_eq!(bench.page.set_deadline(clock::now() + LONG).unwrap(), Renewal::TooLate);
    // The warden has read the page since, once it has done something else that is asked later.
    let late = Running::machine();
    bench.page.list("late", &[late.id()]).unwrap();
    late.is_stopped_soon();
    assert_eq!((kept.state(), lost.state()), ('T', 'T'), "a new deadline alone lets nothing go on");
    bench.page.unlist("lost").unwrap();
    bench.page.regain(clock::now() + LONG).unwrap();
    kept.goes_on_soon();
    late.goes_on_soon();
    assert_eq!(lost.state(), 'T');
}

#[test]
fn machines_of_a_server_that_was_killed_are_stopped() {
    let machine = Running::machine();
    let bench = Bench::watched(LONG, &[("a", &[machine.id()])]);
    let mut server = short_lease(&bench);
    // Where the server began late, it has regained the lease.
    machine.goes_on_soon();
    server.0.kill().unwrap();
    machine.is_stopped_soon();
    // The next one takes over, sees that it is too late, and lets it go on.
    let _server = Running::server(bench.dir.path());
    machine.goes_on_soon();
}

#[test]
fn machines_of_a_server_that_stands_still_are_stopped_and_go_on_with_it() {
    let machine = Running::machine();
    let bench = Bench::watched(LONG, &[("a", &[machine.id()])]);
    let server = short_lease(&bench);
    server.send(Signal::SIGSTOP);
    machine.is_stopped_soon();
    server.send(Signal::SIGCONT);
    machine.goes_on_soon();
}

/// A server that renews a short lease.
fn short_lease(bench: &Bench) -> Running {
    let mut page = Page::open(bench.dir.path()).unwrap();
    page.regain(clock::now() + SHORT).unwrap();
    Running::server(bench.dir.path())
}

/// A warden that is killed once it has stopped a machine.
fn stopped_and_killed(bench: &Bench, machine: &Running) {
    let mut warden = Running(in_role("warden", bench.dir.path()).stdout(Stdio::null()).spawn().unwrap());
    bench.is_over();
    machine.is_stopped_soon();
    warden.0.kill().unwrap();
    warden.0.wait().unwrap();
}

#[test]
fn a_warden_goes_on_with_what_one_before_it_had_stopped() {
    let machine = Running::machine();
    let mut bench = Bench::unwatched(Duration::ZERO, &[("a", &[machine.id()])]);
    stopped_and_killed(&bench, &machine);
    // The lease is regained while nobody watches.
    bench.page.regain(clock::now() + LONG).unwrap();
    spawn(in_role("warden", bench.dir.path()), &bench.page.path()).unwrap();
    machine.goes_on_soon();
}

#[test]
fn a_warden_lets_nothing_go_on_that_one_before_it_had_stopped_in_the_same_generation() {
    let [machine, late] = std::array::from_fn(|_| Running::machine());
    let mut bench = Bench::unwatched(Duration::ZERO, &[("a", &[machine.id()])]);
    stopped_and_killed(&bench, &machine);
    assert_eq!(bench.page.set_deadline(clock::now() + LONG).unwrap(), Renewal::TooLate);
    spawn(in_role("warden", bench.dir.path()), &bench.page.path()).unwrap();
    bench.page.list("late", &[late.id()]).unwrap();
    late.is_stopped_soon();
    assert_eq!(machine.state(), 'T');
    bench.page.regain(clock::now() + LONG).unwrap();
    machine.goes_on_soon();
}

type Spoil = fn(&Path);

#[test]
fn a_page_that_cannot_be_read_stops_machines_at_the_last_deadline() {
    let spoil: [(&str, Spoil); 4] = [
        ("torn", |page| {
            let bytes = fs_err::read(page).unwrap();
            fs_err::write(page, &bytes[..40]).unwrap();
        }),
        ("of another version", |page| {
            let mut bytes = fs_err::read(page).unwrap();
            bytes[8] = 2;
            fs_err::write(page, bytes).unwrap();
        }),
        ("gone", |page| fs_err::remove_file(page).unwrap()),
        ("gone with its directory", |page| fs_err::remove_dir_all(page.parent().unwrap()).unwrap()),
    ];
    for (how, spoil) in spoil {
        let machine = Running::machine();
        let mut bench = Bench::watched(SHORT, &[("a", &[machine.id()])]);
        let path = bench.page.path();
        let generation = bench.page.generation();
        spoil(&path);
        machine.is_stopped_soon();
        if how == "gone with its directory" {
            // Its list is gone, too: what was stopped stays so.
            continue;
        }
        // A page that is made anew is a lease that was regained.
        bench.page = Page::create(bench.dir.path(), clock::now() + LONG).unwrap();
        assert!(bench.page.generation() > generation, "{how}");
        machine.goes_on_soon();
    }
}

/// As on a disk that hangs: whoever opens a pipe waits for somebody at its other end.
#[test]
fn a_page_that_is_not_answered_for_stops_machines_too() {
    let machine = Running::machine();
    let mut bench = Bench::watched(SHORT, &[("a", &[machine.id()])]);
    let path = bench.page.path();
    let pipe = path.with_extension("pipe");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs_err::rename(&pipe, &path).unwrap();
    fs_err::hard_link(&path, &pipe).unwrap();
    machine.is_stopped_soon();
    bench.page = Page::create(bench.dir.path(), clock::now() + LONG).unwrap();
    // Whoever waits is let go, and finds the new one; nobody waits if it came that late.
    let mut writer = fs_err::OpenOptions::new();
    writer.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    drop(writer.open(&pipe));
    machine.goes_on_soon();
}

#[test]
fn a_warden_ends_with_server_and_machines_and_one_is_enough() {
    let mut machine = Running::machine();
    let bench = Bench::watched(LONG, &[("a", &[machine.id()])]);
    // It watches already, so that the program is not even run.
    spawn(Command::new("/does/not/exist"), &bench.page.path()).unwrap();
    let second = in_role("warden", bench.dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(!second.success(), "a second one has nothing to do");
    let mut server = short_lease(&bench);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    machine.is_stopped_soon();
    assert!(bench.page.is_watched().unwrap(), "a machine is left");
    machine.0.kill().unwrap();
    machine.0.wait().unwrap();
    wait_for("the warden to end by itself", || !bench.page.is_watched().unwrap());
}
