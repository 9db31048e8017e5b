//! What joins a guest to its slot's network: a virtual machine has a tap, and a sandbox, which is not on the wire itself, an interface that it
//! takes over.

use std::os::fd::OwnedFd;

use crate::StartError;

/// What an engine joins a guest to its slot's network by.
#[derive(Debug)]
pub enum Attachment {
    /// A tap device inside the slot's namespace, opened without `IFF_VNET_HDR`.
    Tap(OwnedFd),
    /// A namespace with one interface beside its loopback, both up: it has the guest's MAC, addresses and routes, and its other end is in
    /// the slot's namespace. An engine takes them over, so a namespace serves one guest once.
    Interface(OwnedFd),
}

/// Which [`Attachment`] it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentKind {
    /// [`Attachment::Tap`].
    Tap,
    /// [`Attachment::Interface`].
    Interface,
}

impl Attachment {
    /// Which it is.
    #[must_use]
    pub fn kind(&self) -> AttachmentKind {
        match self {
            Self::Tap(_) => AttachmentKind::Tap,
            Self::Interface(_) => AttachmentKind::Interface,
        }
    }

    /// Its descriptor, if it is of the kind that an engine [wants](Engine::attachment).
    pub(crate) fn demand(self, wanted: AttachmentKind) -> Result<OwnedFd, StartError> {
        let kind = self.kind();
        match self {
            Self::Tap(end) | Self::Interface(end) if kind == wanted => Ok(end),
            Self::Tap(_) | Self::Interface(_) => {
                let reason = format!("it was made for another engine: what joins its guest is {kind:?}, and not {wanted:?}");
                Err(StartError::Refused { phase: "its slot", reason })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_takes_no_end_of_another_kind() {
        let end = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(Attachment::Tap(end()).demand(AttachmentKind::Tap).is_ok());
        let refused = Attachment::Interface(end()).demand(AttachmentKind::Tap).unwrap_err();
        assert!(matches!(&refused, StartError::Refused { reason, .. } if reason.contains("another engine")), "{refused}");
    }
}
