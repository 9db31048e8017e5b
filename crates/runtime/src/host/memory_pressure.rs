//! The host's memory as it is: the ledger counts what sandboxes may use, this looks at what is left.
//!
//! Where more memory is promised than there is, promises alone do not keep the host from its OOM killer, which would end some
//! machine, or the server, without asking. So new work is refused before that: while less memory is available than a floor, and
//! while the kernel's pressure stall information says that all of the host waits for memory and not much of it is left. Nothing is taken from sandboxes
//! that run; they may still write all that they were promised, and only a lower overcommit keeps them from it.

use std::{fmt, io, path::Path, sync::Once};

use fs_err as fs;
use serde::Serialize;

/// The host is short of memory, or it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MemoryPressure {
    /// Less is available than the floor.
    #[error("the host has {available_mib} MiB of memory available, the floor is {floor_mib} MiB")]
    BelowFloor {
        /// Memory that can be had without swapping.
        available_mib: u64,
        /// The floor.
        floor_mib: u64,
    },
    /// The whole host waits for memory.
    #[error("the host waited for memory in {percent} % of the last ten seconds, the limit is {limit_percent} %")]
    Stalled {
        /// How long everything waited.
        percent: u8,
        /// From this on no new work is taken.
        limit_percent: u8,
    },
    /// The probe failed, which is not the same as a lack of memory.
    #[error("cannot measure the host's memory")]
    ProbeFailed(#[source] std::io::Error),
}

/// Available memory below which a large host takes no new work, MiB. It is what guests that run may write until one ends.
pub const MEMORY_FLOOR_MIB: u64 = 1024;

/// On a host where [`MEMORY_FLOOR_MIB`] would be more than this part of its memory, the floor is this part instead.
const SMALL_HOST_DIVISOR: u64 = 20;

/// Per cent of the last ten seconds in which every busy task of the host waited for memory, from which on no new work is taken.
/// A host that merely reclaims stays far below. *Every* task, because a single guest that thrashes must not close the host.
pub const MEMORY_STALL_PERCENT: u8 = 10;

/// Stalls count while less than this part of the host's memory is available. The kernel counts a control group that waits at its own
/// limit too, and while nothing else has work that is all of the host (Linux, Documentation/accounting/psi.rst).
const STALLS_COUNT_BELOW: u64 = 4;

/// Measures memory. Injected, so that a host without memory can be tested.
pub trait MemoryPressureProbe: Send + Sync + fmt::Debug {
    /// The host's memory now. Called for every create: it must answer at once.
    fn probe(&self) -> io::Result<HostMemory>;
}

/// The state of a host's memory. As a probe it is that of a host which never changes: for tests, and where something else
/// watches over the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// Bytes that can be had without swapping.
    pub available: u64,
    /// All bytes.
    pub total: u64,
    /// Per cent of the last ten seconds in which every busy task waited for memory; `None` where the kernel does not say.
    pub stalled_percent: Option<u8>,
}

/// A host's memory beside what has to be left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryView {
    /// Can be had without swapping, MiB.
    pub available_mib: u64,
    /// All of it, MiB.
    pub total_mib: u64,
    /// Nothing is started while less is available, MiB.
    pub floor_mib: u64,
    /// Per cent of the last ten seconds in which every busy task waited for memory; `None` where the kernel does not say.
    pub stalled_percent: Option<u8>,
    /// Nothing is started from this on, while less than `stalls_count_below_mib` is available.
    pub stall_limit_percent: u8,
    /// With more available, a stall is that of some control group at its own limit, and not the host's, MiB.
    pub stalls_count_below_mib: u64,
}

impl HostMemory {
    /// A host with plenty of memory.
    pub const PLENTY: Self = Self { available: 1 << 40, total: 1 << 40, stalled_percent: None };
}

impl MemoryPressureProbe for HostMemory {
    fn probe(&self) -> io::Result<HostMemory> {
        Ok(*self)
    }
}

/// Pressure as Linux reports it: `/proc/meminfo`, and `/proc/pressure/memory` where the kernel keeps it.
#[derive(Debug)]
pub struct ProcProbe {
    no_stalls: Once,
}

impl ProcProbe {
    /// Kernels without pressure stall information are told apart by the first look, which says so in the log once.
    pub fn new() -> Self {
        Self { no_stalls: Once::new() }
    }

    /// A kernel may lack the file, refuse to open it (`psi=0`) or hide it in a container: then there is no such signal.
    fn stalled_percent(&self) -> Option<u8> {
        let path = Path::new("/proc/pressure/memory");
        match fs::read_to_string(path).and_then(|text| stalled_percent(&text).ok_or_else(|| malformed(path))) {
            Ok(percent) => Some(percent),
            Err(error) => {
                self.no_stalls.call_once(|| {
                    tracing::info!(%error, "this kernel does not report memory pressure: only available memory is watched");
                });
                None
            }
        }
    }
}

impl Default for ProcProbe {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryPressureProbe for ProcProbe {
    fn probe(&self) -> io::Result<HostMemory> {
        let path = Path::new("/proc/meminfo");
        let text = fs::read_to_string(path)?;
        let field = |name| meminfo(&text, name).ok_or_else(|| malformed(path));
        Ok(HostMemory { available: field("MemAvailable")?, total: field("MemTotal")?, stalled_percent: self.stalled_percent() })
    }
}

fn malformed(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("`{}` has another form than expected", path.display()))
}

/// A field of `/proc/meminfo` in bytes. Its unit is written kB and means KiB (proc_meminfo(5)).
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The whole per cent of `full avg10` (Linux, Documentation/accounting/psi.rst).
fn stalled_percent(text: &str) -> Option<u8> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    let average = full.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
    average.split('.').next()?.parse().ok()
}

/// Refuses new work on a host that is short of memory.
#[derive(Debug, Clone)]
pub struct MemoryPressureGuard {
    /// Least available memory; `None` for [`MEMORY_FLOOR_MIB`], scaled down on a small host.
    pub floor_mib: Option<u64>,
    /// From this on the host stalls too much; more than 100 never.
    pub stall_percent: u8,
    /// Measures.
    pub probe: std::sync::Arc<dyn MemoryPressureProbe>,
}

impl MemoryPressureGuard {
    /// What is available, and what has to be.
    pub fn view(&self) -> Result<MemoryView, MemoryPressure> {
        let memory = self.probe.probe().map_err(MemoryPressure::ProbeFailed)?;
        Ok(MemoryView {
            available_mib: memory.available >> 20,
            total_mib: memory.total >> 20,
            floor_mib: self.floor_of(memory),
            stalled_percent: memory.stalled_percent,
            stall_limit_percent: self.stall_percent,
            stalls_count_below_mib: stalls_count_below(memory) >> 20,
        })
    }

    fn floor_of(&self, memory: HostMemory) -> u64 {
        self.floor_mib.unwrap_or_else(|| MEMORY_FLOOR_MIB.min((memory.total >> 20) / SMALL_HOST_DIVISOR))
    }

    /// Memory equal to the floor passes, a stall equal to its limit does not on a host that is short; a probe that fails does not.
    pub fn check(&self) -> Result<(), MemoryPressure> {
        let memory = self.probe.probe().map_err(MemoryPressure::ProbeFailed)?;
        let available_mib = memory.available >> 20;
        let floor_mib = self.floor_of(memory);
        if available_mib < floor_mib {
            return Err(MemoryPressure::BelowFloor { available_mib, floor_mib });
        }
        match memory.stalled_percent {
            Some(percent) if percent >= self.stall_percent && memory.available < stalls_count_below(memory) => {
                Err(MemoryPressure::Stalled { percent, limit_percent: self.stall_percent })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Bytes available from which on a stall is not the host's.
fn stalls_count_below(memory: HostMemory) -> u64 {
    memory.total / STALLS_COUNT_BELOW
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn guard(floor_mib: Option<u64>, probe: impl MemoryPressureProbe + 'static) -> MemoryPressureGuard {
        MemoryPressureGuard { floor_mib, stall_percent: MEMORY_STALL_PERCENT, probe: Arc::new(probe) }
    }

    fn host(available: u64, stalled_percent: Option<u8>) -> HostMemory {
        HostMemory { available, total: 64 * GIB, stalled_percent }
    }

    #[test]
    fn memory_equal_to_the_floor_passes_and_one_mib_less_does_not() {
        assert!(guard(None, host(GIB, None)).check().is_ok());
        let error = guard(None, host(GIB - 1, None)).check().unwrap_err();
        assert!(matches!(error, MemoryPressure::BelowFloor { available_mib: 1023, floor_mib: 1024 }), "{error}");
        assert!(guard(Some(1), host(1 << 20, None)).check().is_ok());
        let small = HostMemory { available: 200 << 20, total: 2 * GIB, stalled_percent: None };
        assert!(guard(None, small).check().is_ok(), "a small host has a small floor");
    }

    #[test]
    fn a_host_that_stalls_passes_below_its_limit_only() {
        assert!(guard(None, host(2 * GIB, Some(9))).check().is_ok());
        let error = guard(None, host(2 * GIB, Some(10))).check().unwrap_err();
        assert!(matches!(error, MemoryPressure::Stalled { percent: 10, limit_percent: 10 }), "{error}");
    }

    #[test]
    fn stalls_of_a_host_with_plenty_of_memory_are_not_its_own() {
        assert!(guard(None, host(16 * GIB - 1, Some(99))).check().is_err());
        assert!(guard(None, host(16 * GIB, Some(99))).check().is_ok(), "what waits is a control group at its own limit");
    }

    #[test]
    fn a_probe_that_fails_refuses_and_says_so() {
        #[derive(Debug)]
        struct Broken;
        impl MemoryPressureProbe for Broken {
            fn probe(&self) -> io::Result<HostMemory> {
                Err(io::ErrorKind::PermissionDenied.into())
            }
        }
        assert!(matches!(guard(None, Broken).check(), Err(MemoryPressure::ProbeFailed(_))));
    }

    #[test]
    fn the_kernels_tables_are_read_right() {
        let text = "MemTotal:       24684092 kB\nMemFree:         7131236 kB\nMemAvailable:   23885560 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(23_885_560 << 10));
        assert_eq!((meminfo(text, "Mem"), meminfo("", "MemTotal"), meminfo("MemTotal: x kB", "MemTotal")), (None, None, None));
        let text = "some avg10=99.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=12.97 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(
            (stalled_percent(text), stalled_percent("some avg10=1.00\n"), stalled_percent("full avg10=\n")),
            (Some(12), None, None)
        );
    }

    #[test]
    fn this_host_has_memory() {
        let memory = ProcProbe::new().probe().unwrap();
        assert!(0 < memory.available && memory.available <= memory.total, "{memory:?}");
    }
}
