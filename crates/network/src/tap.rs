//! Opens tap devices: the guest's end of a slot's network.
//!
//! No crate of ours or of rust-vmm opens a tap without wrapping it in an interface abstraction that we would have to take
//! apart again; what is needed is two `ioctl`s (Linux `Documentation/networking/tuntap.rst`). The device is opened without
//! `IFF_VNET_HDR`, so that a snapshot does not depend on the offloads of the host that took it.
#![expect(unsafe_code, reason = "TUNSETIFF and TUNSETPERSIST have no safe wrapper in nix or rustix")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::libc;

/// Creates the tap device `name` in the calling thread's network namespace and opens its guest side.
///
/// The device lives as long as its namespace: taking an interface down on close would hold the closing thread, and with it the
/// kernel's lock for interfaces, for tens of milliseconds. The descriptor is non-blocking and closed on exec. Only root can open
/// the device by name; an unprivileged process is given the descriptor.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
    // The last byte stays zero: the kernel reads a C string.
    if name.is_empty() || name.len() >= request.ifr_name.len() || !name.is_ascii() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;

    let file = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let [set_interface, set_persistent] =
        [202, 203].map(|number| nix::request_code_write!(b'T', number, size_of::<libc::c_int>()));
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` at the given address; `request` is one, is initialised, and lives
    // until the call returns. The descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), set_interface, &raw mut request) };
    nix::errno::Errno::result(result)?;
    let yes: libc::c_int = 1;
    // SAFETY: TUNSETPERSIST takes a number, not an address. The descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), set_persistent, yes) };
    nix::errno::Errno::result(result)?;
    Ok(file.into_parts().0.into())
}
