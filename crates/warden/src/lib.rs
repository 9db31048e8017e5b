//! The warden of a node: a process that stops machines when the node's lease is over, and lets them go on when it is regained.
//!
//! Machines outlive their server, so that a lease alone fences nothing: a server that is killed, stopped or cut off does not stop what it
//! has started, and another node may claim it. The warden does. It has a session of its own, no network and no database, and knows
//! nothing of sandboxes: it reads a directory.
//!
//! ```text
//!   DIR/page            the server writes: until when, in which generation, and whether there is more to be done
//!   DIR/machines/NAME   the server writes: processes of a machine whose sandbox could be claimed, each by pid and start time
//!   DIR/lock            held by the warden while it watches
//!   DIR/stopped         the warden writes: the generation in which it has stopped them
//!
//!             deadline passes                       a later generation, with a deadline to come
//!   watching ─────────────────► stopped (SIGSTOP) ───────────────────────────────────────────────► watching (SIGCONT)
//! ```
//!
//! What is not in `machines` runs on: nobody else can start it. A deadline that is put off in time stops nothing ([`Page::set_deadline`]). One
//! that comes too late changes nothing either: the server has first to see which of its machines are still its own, to end the others, and to
//! say so by a new generation ([`Page::regain`]). The warden lets nothing go on by itself.
//!
//! Where the page is torn, of another version, or not there, what it said last is what holds, so that its deadline passes. The page is read
//! and not mapped: a file that somebody cuts off is then an error, and not the warden's end by SIGBUS. Times are on the clock that
//! goes on while the host sleeps ([`clock::now`]).

pub mod clock;
mod list;
mod page;
mod process;
mod run;
mod safeguards;
mod spawn;
mod watched;

pub use page::{Page, PageError, Renewal};
pub use process::ProcessId;
pub use run::{End, RunError, run};
pub use safeguards::Lack;
pub use spawn::{SpawnError, spawn};
