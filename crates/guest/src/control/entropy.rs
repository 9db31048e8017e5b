//! Seeding the kernel's random generator.
//!
//! Clones of one snapshot would draw the same bytes: the generator's state is in the copied memory. Crediting fresh bytes alone
//! does not help until the next periodic reseed, so the reseed is asked for too (random(4), `RNDADDENTROPY`, `RNDRESEEDCRNG`).
#![expect(unsafe_code, reason = "neither nix nor rustix wraps the generator's ioctls")]

use std::{io, os::fd::AsRawFd};

use nix::{ioctl_none, ioctl_write_ptr};

/// Bytes of one seed.
pub(super) const SEED_BYTES: usize = 32;

/// `struct rand_pool_info` with room for one seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size_bytes: i32,
    seed: [u8; SEED_BYTES],
}

// The kernel's own numbers: type 'R', 3 and 7; the first is declared with the size of two ints.
ioctl_write_ptr!(add_entropy, b'R', 3, [i32; 2]);
ioctl_none!(reseed, b'R', 7);

/// The generator, held open: looking for its device in each life would take longer than seeding it.
#[derive(Debug)]
pub(super) struct Generator(fs_err::File);

impl Generator {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(fs_err::OpenOptions::new().write(true).open("/dev/urandom")?))
    }

    /// Adds the seed, credits it in full and makes the generator use it now.
    pub(super) fn add(&self, seed: [u8; SEED_BYTES]) -> io::Result<()> {
        let info = PoolInfo { entropy_bits: 256, size_bytes: 32, seed };
        // SAFETY: the kernel reads two ints and then `size_bytes` bytes behind them, which is the layout and size of `PoolInfo`,
        // alive for the call.
        unsafe { add_entropy(self.0.as_raw_fd(), std::ptr::from_ref(&info).cast()) }?;
        // SAFETY: takes no argument.
        unsafe { reseed(self.0.as_raw_fd()) }?;
        Ok(())
    }
}
