//! `moto`'s server of S3, for one test.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::{prctl, signal::Signal};
use tokio::net::TcpSocket;

/// From its start to its first answer: Python reads a few hundred modules.
const START: Duration = Duration::from_secs(60);

pub(crate) struct Moto {
    child: Child,
    port: u16,
    #[expect(dead_code, reason = "held, not used")]
    held: TcpSocket,
}

impl Moto {
    /// None where nobody says where the program is; the test says so.
    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("MOTO_SERVER") else {
            eprintln!("skipped: MOTO_SERVER does not name moto's server");
            return None;
        };
        // Bound for as long as it serves: it allows another one beside it that does not listen, and nobody is given the port.
        let held = TcpSocket::new_v4().unwrap();
        held.set_reuseaddr(true).unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = held.local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        dies_with_its_parent(&mut command);
        let moto = Self { child: command.spawn().unwrap(), port, held };
        let deadline = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "moto does not come up");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Some(moto)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn make_bucket(&self, name: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let authorization = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";
        write!(
            stream,
            "PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {authorization}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[expect(unsafe_code, reason = "what a child does before its program")]
fn dies_with_its_parent(command: &mut Command) {
    // SAFETY: one system call, which is safe after a fork.
    unsafe {
        command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}
