//! A server that a test kills while its machine lives: the test's own program once more, running one test that does what a server does.
//! It tells by a file where its machine is.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The test that the process runs. Elsewhere it does nothing.
const TEST: &str = "a_server_that_will_be_killed";
/// Tells the process the file.
const VARIABLE: &str = "FIRKIN_TEST_INSTANCE_FILE";

/// The process, seen from the test. It is killed when this is dropped.
#[derive(Debug)]
pub struct DoomedServer {
    process: Child,
    told: PathBuf,
}

impl DoomedServer {
    /// Starts it; `dir` is a directory of its own.
    pub fn start(dir: &Path) -> Self {
        let told = dir.join("instance");
        let program = std::env::current_exe().expect("a test has a program");
        let mut command = Command::new(program);
        command.args(["--exact", TEST]).env(VARIABLE, &told).stdout(Stdio::null());
        Self { process: command.spawn().expect("the test's program starts"), told }
    }

    /// The directory of its machine, once that runs.
    pub async fn instance(&self, deadline: Duration) -> PathBuf {
        let begun = Instant::now();
        while !self.told.exists() {
            assert!(begun.elapsed() < deadline, "the server that is to be killed has started no machine within {deadline:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fs_err::read_to_string(&self.told).expect("what it told can be read").into()
    }

    /// Kills it.
    pub fn kill(self) {}
}

impl Drop for DoomedServer {
    fn drop(&mut self) {
        // An error means that it has ended.
        if self.process.kill().is_ok() {
            self.process.wait().expect("a child can be waited for");
        }
    }
}

/// Where to tell, in that process.
pub fn file() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Tells where the machine is, whole or not at all.
pub fn tell(file: &Path, instance: &Path) {
    let next = file.with_extension("new");
    fs_err::write(&next, instance.to_str().expect("a test's path is UTF-8")).expect("the file can be written");
    fs_err::rename(next, file).expect("the file can be named");
}
