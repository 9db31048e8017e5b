//! Events of connections that are gone are not told to the agent.
//!
//! The asynchronous runtime has the kernel keep, for each file that it waits for, the address of what it knows about it, and follows the address
//! with each event. The kernel of a sandbox may tell of files that were closed long ago: Debian's gVisor keeps some of them linked to those that
//! are open (`notReady` of its `ReadEvents`), saves them in a checkpoint, and tells of each once it is restored (`afterLoad`). The agent of a
//! clone then followed an address to what had become something else: it waited for a lock that nobody held, or crashed. So each registration has a
//! number of its own that is never used again: the kernel keeps the number, the address is kept here until the file is given back, and events with
//! a number that nobody has are dropped.
//!
//! The runtime has no seam for that. So the linker puts these two functions in the place of the C library's (`--wrap`, build.rs).
#![expect(unsafe_code, reason = "these are the C library's functions, by its conventions")]

use std::{
    collections::BTreeMap,
    ffi::{c_int, c_long},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, SYS_epoll_ctl, SYS_epoll_pwait, epoll_event, syscall};

/// What is registered.
static TABLE: Mutex<Table> = Mutex::new(Table { last: 0, numbers: BTreeMap::new(), kept: BTreeMap::new() });

#[derive(Debug)]
struct Table {
    /// The number given last.
    last: u64,
    /// Which number a file has at an epoll instance, both by descriptor.
    numbers: BTreeMap<(c_int, c_int), u64>,
    /// What whoever registered wants to be told, by number.
    kept: BTreeMap<u64, u64>,
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `epoll_ctl(2)`: what `event` has to be told is kept here, and the kernel gets a number.
///
/// # Safety
///
/// As of the C library's: `event` points to an event, or is null where the operation needs none.
#[unsafe(export_name = "__wrap_epoll_ctl")]
unsafe extern "C" fn control(epoll: c_int, operation: c_int, file: c_int, event: *mut epoll_event) -> c_int {
    let mut table = table();
    // SAFETY: the caller's promise.
    let wanted = unsafe { event.as_ref() }.copied();
    let number = match operation {
        EPOLL_CTL_ADD => table.last + 1,
        EPOLL_CTL_MOD | EPOLL_CTL_DEL => table.numbers.get(&(epoll, file)).copied().unwrap_or(0),
        _ => 0,
    };
    let mut numbered = epoll_event { events: wanted.map_or(0, |wanted| wanted.events), u64: number };
    let passed: *mut epoll_event = if event.is_null() { event } else { &raw mut numbered };
    // SAFETY: the call reads the event and keeps nothing of it.
    let outcome = unsafe { syscall(SYS_epoll_ctl, epoll, operation, file, passed) };
    // The table stays locked meanwhile: whoever is told of the number before this call is over waits here for what it stands for.
    match (outcome, operation, wanted) {
        (0, EPOLL_CTL_ADD, Some(wanted)) => {
            table.last = number;
            // A file that was closed without being given back has left its number here.
            if let Some(before) = table.numbers.insert((epoll, file), number) {
                table.kept.remove(&before);
            }
            table.kept.insert(number, wanted.u64);
        }
        (0, EPOLL_CTL_MOD, Some(wanted)) => {
            table.kept.insert(number, wanted.u64);
        }
        (0, EPOLL_CTL_DEL, _) => {
            table.numbers.remove(&(epoll, file));
            table.kept.remove(&number);
        }
        _ => {}
    }
    c_int::try_from(outcome).unwrap_or(-1)
}

/// `epoll_wait(2)`: events with a number that nobody has are dropped. Where all are, it is as if the time was over.
///
/// # Safety
///
/// As of the C library's: `events` points to room for `most` events.
#[unsafe(export_name = "__wrap_epoll_wait")]
unsafe extern "C" fn wait(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: c_int) -> c_int {
    let (no_mask, size_of_mask) = (std::ptr::null::<u8>(), size_of::<u64>());
    // SAFETY: the caller's promise; without a mask of signals this is epoll_wait, which not every processor has as a call of its own.
    let outcome: c_long = unsafe { syscall(SYS_epoll_pwait, epoll, events, most, timeout, no_mask, size_of_mask) };
    let Ok(count @ 1..) = usize::try_from(outcome) else { return c_int::try_from(outcome).unwrap_or(-1) };
    // SAFETY: the kernel has written that many.
    let events = unsafe { std::slice::from_raw_parts_mut(events, count) };
    c_int::try_from(translate(events)).expect("there were no more events than that")
}

/// Puts what is wanted in place of numbers and drops the rest. How many are left, which come first.
fn translate(events: &mut [epoll_event]) -> usize {
    let table = table();
    let mut left = 0;
    for at in 0..events.len() {
        let mut event = events[at];
        let number = event.u64;
        if let Some(wanted) = table.kept.get(&number) {
            event.u64 = *wanted;
            events[left] = event;
            left += 1;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use nix::{libc::EPOLLIN, sys::eventfd::EventFd};

    use super::*;

    /// An instance, and a file that is ready to be read.
    fn instance() -> (OwnedFd, EventFd) {
        // SAFETY: a new descriptor is nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(nix::libc::epoll_create1(0)) };
        (epoll, EventFd::from_value(1).unwrap())
    }

    fn register(epoll: &OwnedFd, operation: c_int, file: &EventFd, told: u64) -> c_int {
        let mut event = epoll_event { events: u32::try_from(EPOLLIN).unwrap(), u64: told };
        // SAFETY: the event lives longer than the call.
        unsafe { control(epoll.as_raw_fd(), operation, file.as_raw_fd(), &raw mut event) }
    }

    /// What is told at once.
    fn told(epoll: &OwnedFd) -> Vec<u64> {
        let mut events = [epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: there is room for eight.
        let count = unsafe { wait(epoll.as_raw_fd(), events.as_mut_ptr(), 8, 0) };
        events[..usize::try_from(count).unwrap()].iter().map(|event| event.u64).collect()
    }

    #[test]
    fn whoever_registers_is_told_what_it_wanted_to_be_told() {
        let (epoll, file) = instance();
        assert_eq!(register(&epoll, EPOLL_CTL_ADD, &file, 0xdead_beef), 0);
        assert_eq!(told(&epoll), [0xdead_beef]);
        assert_eq!(register(&epoll, EPOLL_CTL_MOD, &file, 7), 0);
        assert_eq!(told(&epoll), [7]);
        assert_eq!(register(&epoll, EPOLL_CTL_ADD, &file, 8), -1, "it is there");
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(nix::libc::EEXIST));
        assert_eq!(told(&epoll), [7], "what failed changed nothing");
    }

    #[test]
    fn of_what_is_gone_nothing_is_told() {
        let (epoll, file) = instance();
        register(&epoll, EPOLL_CTL_ADD, &file, 1);
        let mut stale = [epoll_event { events: 1, u64: table().last }];
        assert_eq!(register(&epoll, EPOLL_CTL_DEL, &file, 0), 0);
        assert_eq!(translate(&mut stale), 0, "its number is nobody's");
        // The next one is somebody else, though it has the same descriptor and wants the same.
        register(&epoll, EPOLL_CTL_ADD, &file, 1);
        assert_eq!(translate(&mut stale), 0);
        assert_eq!(told(&epoll), [1]);
    }

    #[test]
    fn what_the_kernel_tells_of_somebody_else_is_dropped() {
        let (epoll, file) = instance();
        register(&epoll, EPOLL_CTL_ADD, &file, 5);
        let gone = EventFd::from_value(1).unwrap();
        let mut event = epoll_event { events: u32::try_from(EPOLLIN).unwrap(), u64: u64::MAX };
        // SAFETY: the event lives longer than the call, which is not told here.
        let added = unsafe { syscall(SYS_epoll_ctl, epoll.as_raw_fd(), EPOLL_CTL_ADD, gone.as_raw_fd(), &raw mut event) };
        assert_eq!(added, 0);
        assert_eq!(told(&epoll), [5]);
    }
}
