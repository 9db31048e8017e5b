//! Before a cut, in a container: connections whose other side has closed them are closed on this side too.
//!
//! The cut of a container breaks off what is open, and some kernels tell that to whoever waits for events in a way that he does not
//! survive. What its host still has it can reset before. What the host has closed already it cannot: that this side still has to.

use std::{
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use nix::poll::{PollTimeout, poll};

/// Where the kernel tells of connections.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// The state of a connection that the other side alone has closed, as the kernel prints it.
const CLOSE_WAIT: &str = "08";
/// Whoever serves closes within a millisecond. A program that never does must not hold up every cut.
const DEADLINE: Duration = Duration::from_millis(200);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// Returns when no connection waits to be closed, or no longer than a program that does not close its own may hold this up.
pub(super) fn wait() {
    let deadline = Instant::now() + DEADLINE;
    while TABLES.iter().any(|table| waits(table)) && Instant::now() < deadline {
        // Nothing tells of it.
        let pause = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
        if poll(&mut [], pause).is_err() {
            return;
        }
    }
}

/// Whether a connection in this table waits to be closed. Where there is no table, nothing is known to.
fn waits(table: &str) -> bool {
    let Ok(file) = fs_err::File::open(table) else { return false };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    lines.skip(1).any(|line| line.split_whitespace().nth(3) == Some(CLOSE_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_one_side_has_closed_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("tcp");
        let head = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        let line =
            |state: &str| format!("   0: 1500FEA9:C33F 1600FEA9:A3E6 {state} 00000000:00000000 00:00000000 00000000 0 0 1 1\n");
        for (content, waited) in [(String::new(), false), (line("0A") + &line("01"), false), (line("01") + &line("08"), true)] {
            fs_err::write(&table, format!("{head}{content}")).unwrap();
            assert_eq!(waits(table.to_str().unwrap()), waited, "{content}");
        }
        assert!(!waits("/nowhere"));
    }
}
