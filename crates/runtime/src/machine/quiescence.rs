//! Waiting until a guest has nothing left to do.
//!
//! A kernel puts off much of what the end of a command means: grace periods, delayed frees, the last words of connections. What is
//! pending when a machine is stopped is done as soon as it runs again, in every clone and before it has an identity. For whatever
//! is stopped ahead of its use it is better done then. A guest that has work of its own is not waited for.

use std::time::Duration;

use firkin_engine::{Machine, MachineError};

/// So many windows in a row in which the machine used at most so much CPU time are rest. The kernel counts in steps of 10 ms.
const WINDOWS: u32 = 3;
const WINDOW: Duration = Duration::from_millis(100);
const CPU_MS: u64 = 10;

/// The guest is watched for this many windows, 2 s.
const WINDOWS_MAX: u32 = 20;

/// Returns when the guest of a running machine is at rest, or will not be.
pub(crate) async fn come_to_rest(machine: &mut dyn Machine) -> Result<(), MachineError> {
    let mut used_ms = machine.host_use().await?.cpu_ms;
    let mut at_rest = 0;
    for _ in 0..WINDOWS_MAX {
        tokio::time::sleep(WINDOW).await;
        let now_ms = machine.host_use().await?.cpu_ms;
        at_rest = if now_ms - used_ms <= CPU_MS { at_rest + 1 } else { 0 };
        if at_rest == WINDOWS {
            break;
        }
        used_ms = now_ms;
    }
    Ok(())
}
