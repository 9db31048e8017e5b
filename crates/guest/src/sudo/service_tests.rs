//! The service as an ordinary process, and what a client hears of it.

use std::{
    fs::File,
    io::{Read, Write},
    process::Command,
    time::Instant,
};

use super::*;
use crate::{reaper::Exit, sudo::link::Shell};

/// For a shell on a busy host.
const DEADLINE: Duration = Duration::from_secs(20);

/// A service of this process, and a caller of it.
struct Caller {
    link: UnixStream,
    input: Option<File>,
    output: File,
}

/// None, after saying so: the agent is root, and whoever is not may run nothing as another.
#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn service(dir: &Path) -> Option<UnixStream> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: what the agent runs for others it runs as root");
        return None;
    }
    let socket = dir.join("inner/sudo");
    start_at(&socket, EnvdState::default(), Reaper::of_process().unwrap()).unwrap();
    Some(UnixStream::connect(socket).unwrap())
}

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

impl Caller {
    fn asks(link: UnixStream, request: &Request) -> Self {
        let (child_in, input) = io::pipe().unwrap();
        let (output, child_out) = io::pipe().unwrap();
        let streams = [child_in.as_fd(), child_out.as_fd(), child_out.as_fd()];
        send(&link, request, &streams).unwrap();
        link.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { link, input: Some(OwnedFd::from(input).into()), output: OwnedFd::from(output).into() }
    }

    fn hears(&self) -> (Reply, Vec<OwnedFd>) {
        let mut beside = Beside::default();
        (receive(&self.link, &mut beside).unwrap().unwrap(), beside.descriptors)
    }

    /// What it said, and how it ended.
    fn ends(mut self) -> (String, Reply) {
        self.input = None;
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        (said, self.hears().0)
    }
}

#[test]
fn a_command_has_its_callers_streams_and_its_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let Some(link) = service(dir.path()) else { return };
    let script = "read line; echo \"$line $(id -u) $PWD $SUDO_UID $A $TERM\"; exit 7";
    let request = Request {
        words: words(&["sh", "-c", script]),
        kept: words(&["TERM=kept"]),
        set: words(&["A=set"]),
        cwd: b"/usr".to_vec(),
        ..Request::default()
    };
    let mut caller = Caller::asks(link, &request);
    assert_eq!(caller.hears().0, Reply::Started);
    caller.input.as_mut().unwrap().write_all(b"given\n").unwrap();
    assert_eq!(caller.ends(), ("given 0 /usr 0 set kept\n".to_owned(), Reply::Code(7)));
}

#[test]
fn a_command_runs_as_whom_was_asked_for_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let Some(link) = service(dir.path()) else { return };
    let id = Request { words: words(&["id", "-u"]), user: Some("nobody".into()), cwd: b"/root".to_vec(), ..Request::default() };
    let caller = Caller::asks(link, &id);
    assert_eq!(caller.hears().0, Reply::Started);
    assert_eq!(
        caller.ends(),
        ("65534\n".to_owned(), Reply::Code(0)),
        "a directory that it may not enter is no reason to run nothing"
    );
    let login =
        Request { words: words(&["echo", "$HOME a b"]), shell: Shell::Login, cwd: b"/usr".to_vec(), ..Request::default() };
    let none = Request { words: words(&["no-such-command"]), ..Request::default() };
    let nobody = Request { user: Some("no-such-user".into()), ..none.clone() };
    let ask = |request| Caller::asks(UnixStream::connect(dir.path().join("inner/sudo")).unwrap(), request);
    let caller = ask(&login);
    assert_eq!(caller.hears().0, Reply::Started);
    assert_eq!(caller.ends().0, "/root a b\n");
    for (request, reason) in [
        (&none, "no-such-command: command not found"),
        (&nobody, "unknown user no-such-user"),
        (&Request::default(), ": command not found"),
    ] {
        assert_eq!(ask(request).hears().0, Reply::Refused(reason.to_owned()));
    }
}

#[test]
fn signals_reach_a_command_and_what_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let Some(link) = service(dir.path()) else { return };
    let mut caller =
        Caller::asks(link, &Request { words: words(&["sh", "-c", "echo up; sleep 600 & wait"]), ..Request::default() });
    assert_eq!(caller.hears().0, Reply::Started);
    caller.output.read_exact(&mut [0; 3]).unwrap();
    send(&caller.link, &Passed(Signal::SIGTERM as i32), &[]).unwrap();
    assert_eq!(caller.ends().1, Reply::Signal(Signal::SIGTERM as i32), "and its output is closed: the child has ended too");
}

#[test]
fn a_command_at_a_terminal_has_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let Some(link) = service(dir.path()) else { return };
    let script = "stty size; test -t 1 && exec sleep 600";
    let request =
        Request { words: words(&["sh", "-c", script]), terminals: [true, false, true], size: (91, 17), ..Request::default() };
    let mut caller = Caller::asks(link, &request);
    let (reply, mut beside) = caller.hears();
    assert_eq!(reply, Reply::Started);
    let mut said = [0; 6];
    caller.output.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"17 91\n", "a stream that is none stays what it is");
    // `test -t 1` fails, so what is at a terminal ends by itself.
    assert_eq!(caller.hears().0, Reply::Code(1));
    drop(beside.pop());

    let request = Request { words: words(&["sleep", "600"]), terminals: [true; 3], ..request };
    let caller = Caller::asks(UnixStream::connect(dir.path().join("inner/sudo")).unwrap(), &request);
    let (_, mut beside) = caller.hears();
    let mut master = File::from(beside.pop().expect("its terminal comes with it"));
    let deadline = Instant::now() + DEADLINE;
    // A key that comes before the child has become `sleep` may be lost on nobody: it is typed until it is heard.
    caller.link.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    loop {
        assert!(Instant::now() < deadline, "Ctrl-C ends what runs at the terminal");
        master.write_all(b"\x03").unwrap();
        match receive::<Reply>(&caller.link, &mut Beside::default()) {
            Ok(Some(reply)) => break assert_eq!(reply, Reply::Signal(Signal::SIGINT as i32)),
            Ok(None) => panic!("the agent is gone"),
            Err(_) => {}
        }
    }
}

/// Sends so much of a frame as nobody, from a process of his own, and tells what that was answered.
const AS_NOBODY: &str = "
import os, socket, sys
os.setgid(65534); os.setuid(65534)
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
link.settimeout(20)
link.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
link.send((16 << 20).to_bytes(4, 'little'))
print(link.recv(4096)[4:].decode())
";

#[test]
fn who_may_not_is_told_so_before_what_he_wants_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_link) = service(dir.path()) else { return };
    fs_err::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let socket = dir.path().join("inner/sudo");
    let (mut output, told) = io::pipe().unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", AS_NOBODY]).arg(socket).stdout(told.try_clone().unwrap()).stderr(told);
    // By the reaper: it waits for every child of this process, whoever else waits for it.
    let asked = Reaper::of_process().unwrap().spawn(&mut command).unwrap();
    drop(command);
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(said.contains("nobody may not run anything as another user here"), "{said}");
    assert_eq!(asked.exit.blocking_recv().unwrap(), Exit::Code(0));
}
