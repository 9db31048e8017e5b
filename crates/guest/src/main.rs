//! The agent's binary: all of it is in the library, where a fuzzer reaches it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    firkin_guest::run()
}
