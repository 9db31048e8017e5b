//! `sudo` where no program runs as its owner: a container runtime without setuid, or one that was started without privileges to gain.
//!
//! ```text
//!   this program as `sudo` ── words, environment, directory, streams ──► agent: may this user? ──► a child of the agent
//!        │  ▲ └───────────── signals ─────────────────────────────────────────►                        │
//!        │  └─────────────── how it ended ◄────────────────────────────────────────────────────────────┤
//!        └── keys and output, where a stream is a terminal ◄──► a terminal of its own ◄────────────────┘
//! ```
//!
//! The agent is root, and asks the kernel who is at the other end of the socket. What is allowed is decided by that alone; the rest of a
//! request is what whoever may do everything could do anyway, so it is believed. A command is not in its caller's session, which only a
//! child of the caller can be: where a stream is a terminal it gets one of its own, as `sudo` does by `use_pty`, and Ctrl-C and job
//! control are those of that one.

mod client;
mod environment;
mod launch;
mod link;
mod place;
mod policy;
mod relay;
mod service;
mod words;

pub(crate) use self::{
    client::{is_meant, run},
    place::{IS_ROOT, take_place},
    service::start,
};
