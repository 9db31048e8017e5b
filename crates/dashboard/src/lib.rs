//! The dashboard's pages: pure functions from plain data to HTML, and the files that the pages ask for.
//!
//! It knows no runtime, no server and no status: whoever serves it fills the views and sends what comes out. Text that users wrote
//! gets into a page through `maud`, which escapes it, and nowhere does a page hold a script or a style of its own: what would have to be
//! allowed for that is what a stranger's markup would need ([`assets::POLICY`]).

pub mod assets;
pub mod code;
pub mod files;
pub mod frame;
pub mod host;
pub mod lineage;
pub mod nodes;
pub mod plot;
pub mod problem;
pub mod sandbox;
pub mod sandboxes;
pub mod settings;
pub mod sign_in;
pub mod teams;
pub mod templates;
pub mod terminal;
pub mod when;
