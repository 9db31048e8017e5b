//! A directory of the host as a file system of several guests at once.
//!
//! A guest's kernel asks by FUSE's messages, its agent hands them on, and what answers them here is the same for all: no state of a guest
//! is needed to answer it. Whoever was killed and comes back goes on, a guest that was frozen for a year asks as if nothing had been.
//!
//! * An entry is known by a number that is made of what the host's file system says of it (inode, and the time at which that was
//!   made, which tells it from the next one that has its number). So numbers are the same after a restart, and none is ever of
//!   another entry. Where it lies is kept in a file beside the directory, for as many entries as there are (`places.rs`, `tree.rs`).
//! * Paths are never a guest's. They are made of names that were checked here, and the kernel resolves them below the directory and
//!   through no symbolic link: links are the guest's own to follow, and lead nowhere here.
//! * Owners are numbers of the guest's users, and the guest's kernel decides who may what. Nobody on the host comes by these files:
//!   whoever has this crate keeps the directory to himself.
//! * Devices, pipes and sockets are not made, nor programs that run as somebody else.
//! * Whatever takes room asks for it before (`Room`), and one change is made at a time.
//!
//! It knows neither sandboxes nor volumes, and not how a stream came about.

mod answer;
mod change;
mod content;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod link;
mod listing;
mod message;
mod opened;
mod places;
mod room;
mod tree;
mod vacated;

pub use answer::Access;
pub use link::{Gate, Held, LinkError, Turn, serve};
pub use room::{Figures, Room, Sizes};
pub use tree::Share;
