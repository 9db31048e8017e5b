//! The server name of a TLS greeting, however it is cut into records and segments.
//!
//! Read by the TLS library, as a server would that takes it. What that refuses has no name: compression, no signature algorithms
//! (TLS 1.1 and older), a name that is none.

use std::io::Cursor;

use rustls::server::Acceptor;

use super::{Heard, Unnamed};

/// The type of a record that begins a handshake (RFC 8446, 5.1).
pub(super) const HANDSHAKE: u8 = 22;

#[derive(Default)]
pub(super) struct Reader(Acceptor);

impl Reader {
    /// Takes bytes that it has not had before.
    pub(super) fn read(&mut self, fresh: &[u8]) -> Heard {
        let mut rest = Cursor::new(fresh);
        while rest.position() < fresh.len() as u64 {
            if self.0.read_tls(&mut rest).is_err() {
                return Some(Err(Unnamed::Malformed));
            }
            match self.0.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::parse);
                    return Some(match name {
                        None => Err(Unnamed::NoName),
                        Some(name) => name.map_err(|_| Unnamed::Malformed),
                    });
                }
                Err(_) => return Some(Err(Unnamed::Malformed)),
            }
        }
        None
    }
}
