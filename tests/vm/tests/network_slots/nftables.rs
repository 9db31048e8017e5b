//! What other programs of a host do to its nftables, as the kernel is told of it (Linux `include/uapi/linux/netfilter/`
//! `nf_tables.h` and `nfnetlink.h`): a host of these tests need not have `nft`.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

/// `NFPROTO_INET`, and the family that stands for all.
const INET: u8 = 1;
const ANY_FAMILY: u8 = 0;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = NEW_TABLE | 2;
const DELETE_CHAIN: u16 = NEW_TABLE | 5;
const DELETE_RULE: u16 = NEW_TABLE | 8;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
/// `NFT_TABLE_F_DORMANT`: the table is there, and looks at no packet.
pub(crate) const DORMANT: u32 = 1;
/// `NFT_TABLE_F_OWNER`: nobody else may change the table while the socket is open.
pub(crate) const OWNED: u32 = 2;

/// One message of a transaction.
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    family: u8,
    attributes: Vec<u8>,
}

/// `nft flush ruleset`, with which the `/etc/nftables.conf` of most hosts begins.
pub(crate) fn flush_ruleset() -> Message {
    Message { kind: DELETE_TABLE, flags: 0, family: ANY_FAMILY, attributes: Vec::new() }
}

/// `nft delete table inet TABLE`.
pub(crate) fn delete_table(table: &str) -> Message {
    Message { kind: DELETE_TABLE, flags: 0, family: INET, attributes: text(1, table) }
}

/// `nft add table inet TABLE { flags FLAGS; }`.
pub(crate) fn table(table: &str, flags: u32) -> Message {
    let attributes = [text(1, table), attribute(2, &flags.to_be_bytes())].concat();
    Message { kind: NEW_TABLE, flags: CREATE, family: INET, attributes }
}

/// `nft delete chain inet TABLE CHAIN`.
pub(crate) fn delete_chain(table: &str, chain: &str) -> Message {
    Message { kind: DELETE_CHAIN, flags: 0, family: INET, attributes: [text(1, table), text(3, chain)].concat() }
}

/// `nft flush chain inet TABLE CHAIN`.
pub(crate) fn flush_chain(table: &str, chain: &str) -> Message {
    Message { kind: DELETE_RULE, flags: 0, family: INET, attributes: [text(1, table), text(2, chain)].concat() }
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn append(batch: &mut Vec<u8>, message: &Message, resource: u16) {
    let length = u32::try_from(20 + message.attributes.len()).unwrap();
    batch.extend(length.to_ne_bytes());
    batch.extend(message.kind.to_ne_bytes());
    batch.extend((message.flags | REQUEST).to_ne_bytes());
    batch.extend([0; 8]);
    batch.extend([message.family, 0]);
    batch.extend(resource.to_be_bytes());
    batch.extend(&message.attributes);
}

/// Has the kernel take `messages` as one transaction in the calling thread's namespace, or says its errno. The socket owns
/// tables that were made owned.
pub(crate) fn commit(mut messages: Vec<Message>) -> Result<OwnedFd, i32> {
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
    messages.last_mut().unwrap().flags |= ACKNOWLEDGE;
    let fence = |kind| Message { kind, flags: 0, family: ANY_FAMILY, attributes: Vec::new() };
    let mut batch = Vec::new();
    append(&mut batch, &fence(BATCH_BEGIN), SUBSYSTEM);
    messages.iter().for_each(|message| append(&mut batch, message, 0));
    append(&mut batch, &fence(BATCH_END), SUBSYSTEM);
    send(socket.as_raw_fd(), &batch, MsgFlags::empty()).unwrap();
    let mut answer = [0; 4096];
    recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    match i32::from_ne_bytes(answer[16..20].try_into().unwrap()) {
        0 => Ok(socket),
        errno => Err(-errno),
    }
}
