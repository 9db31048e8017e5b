//! What is in force of nftables: the generation of all rules, the contents of one table, and word of every change.
//!
//! Contents are compared, not understood: the kernel says the same of a table for as long as nobody changes it, handles
//! included, which it never uses twice. So a rule that was deleted, put in front or put back by somebody else shows, whatever
//! it says.

use std::{io, time::Duration};

use futures::FutureExt;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{GenAttribute, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage},
};
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER},
};

use super::nft::{Batch, Connection, NftError, append};

/// `NFNLGRP_NFTABLES`: every change of the namespace's rules is told there.
const CHANGES: u32 = 7;
/// Installations that are tried while others change rules at the same moment. Each takes a millisecond or two.
const INSTALLS: usize = 16;
/// Reads of a table that is being changed.
const READS: usize = 16;
/// Datagrams of notifications that are read before the rules are looked at. More are read after that.
const DATAGRAMS: usize = 4096;
/// Of each, what is read; the kernel drops the rest.
const DATAGRAM_BYTES: usize = 64;
/// How often rules are looked at on a kernel that does not tell of changes: for so long a guest may reach what only the host's
/// rules keep from it, and a look costs 0.1 ms.
const PERIOD: Duration = Duration::from_secs(1);

/// Everything that a table holds, as the kernel tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents(Vec<Vec<u8>>);

/// The contents of the `inet` table `table` in the calling thread's network namespace; `None` when there is none.
pub(super) fn contents(table: &str) -> Result<Option<Contents>, NftError> {
    let question = || format!("contents of table {table}");
    for _ in 0..READS {
        let get = TableMessage { attributes: vec![TableAttribute::Name(table.into())] };
        let Some(mut parts) = ask(NfTablesMessage::GetTable(get), 0, &question())? else { continue };
        if parts.is_empty() {
            return Ok(None);
        }
        let get = RuleMessage { attributes: vec![RuleAttribute::Table(table.into())] };
        if let Some(rules) = ask(NfTablesMessage::GetRule(get), NLM_F_DUMP, &question())? {
            parts.extend(rules);
            return Ok(Some(Contents(parts)));
        }
    }
    Err(NftError::Protocol(question()))
}

/// Puts a table in force and says what it holds then: what `batch` makes of it and nothing else, since no other transaction
/// came between.
pub(super) fn install(table: &str, batch: impl Fn() -> Batch) -> Result<Contents, NftError> {
    for _ in 0..INSTALLS {
        let before = generation()?;
        batch().commit()?;
        let installed = contents(table)?;
        // Linux `nf_tables_commit`: each transaction is the next generation, which is never 0.
        let next = before.wrapping_add(1).max(1);
        if let Some(installed) = installed.filter(|_| generation().is_ok_and(|now| now == next)) {
            return Ok(installed);
        }
    }
    Err(NftError::Protocol(format!("installation of table {table}")))
}

/// The number of the transaction that was the last.
fn generation() -> Result<u32, NftError> {
    const QUESTION: &str = "generation";
    let connection = send(NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() }), 0)?;
    let mut found = None;
    connection.answers(QUESTION, |_, payload| {
        if let NetlinkPayload::InnerMessage(message) = payload
            && let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(generation)) = message.inner
        {
            found = generation.attributes.into_iter().find_map(|attribute| match attribute {
                GenAttribute::Id(id) => Some(id),
                _ => None,
            });
        }
        Some(Ok(()))
    })?;
    found.ok_or_else(|| NftError::Protocol(QUESTION.into()))
}

fn send(body: NfTablesMessage, flags: u16) -> Result<Connection, NftError> {
    let connection = Connection::open()?;
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, body));
    message.header.flags = NLM_F_REQUEST | flags;
    let mut bytes = Vec::new();
    append(&mut bytes, &mut message);
    connection.send(&bytes)?;
    Ok(connection)
}

/// The attributes of every message of the answer: none when there is no such thing. `None` when rules changed meanwhile.
fn ask(body: NfTablesMessage, flags: u16, question: &str) -> Result<Option<Vec<Vec<u8>>>, NftError> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    /// Of netfilter's own header, which tells the generation.
    const HEADER: usize = 4;
    let connection = send(body, flags)?;
    let (mut parts, mut interrupted) = (Vec::new(), false);
    connection.messages(question, |message| {
        interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
        match message.message_type() {
            DONE => Some(Ok(())),
            ERROR => {
                let code = message.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                match -code {
                    0 | nix::libc::ENOENT => Some(Ok(())),
                    nix::libc::EINTR | nix::libc::EAGAIN => {
                        interrupted = true;
                        Some(Ok(()))
                    }
                    errno => {
                        let source = io::Error::from_raw_os_error(errno);
                        Some(Err(NftError::Refused { message: question.into(), source }))
                    }
                }
            }
            _ => {
                parts.push(message.payload().get(HEADER..).unwrap_or_default().to_vec());
                (flags & NLM_F_DUMP == 0).then_some(Ok(()))
            }
        }
    })?;
    Ok((!interrupted).then_some(parts))
}

/// Word of changes of the rules of one namespace, from the moment it was opened.
pub(super) struct Changes(Option<TokioSocket>);

impl Changes {
    /// Of the calling thread's network namespace. Must run inside a tokio runtime.
    pub(super) fn open() -> Self {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_mut().add_membership(CHANGES)?;
            Ok::<_, io::Error>(socket)
        };
        let opened = open();
        if let Err(error) = &opened {
            tracing::warn!(%error, ?PERIOD, "the kernel does not tell of changes of nftables: rules are looked at now and then");
        }
        Self(opened.ok())
    }

    /// Waits until something may have changed. Nothing is lost when it is cancelled.
    pub(super) async fn next(&self) {
        let Some(socket) = &self.0 else { return tokio::time::sleep(PERIOD).await };
        // What they say is not read: the rules themselves are. Words that did not fit the socket are an error, once, and a
        // change like any other.
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
        let mut done = socket.recv(&mut datagram).await;
        for _ in 0..DATAGRAMS {
            if let Err(error) = &done
                && error.raw_os_error() != Some(nix::libc::ENOBUFS)
            {
                tracing::warn!(%error, "cannot read changes of nftables");
                return tokio::time::sleep(PERIOD).await;
            }
            datagram.clear();
            match socket.recv(&mut datagram).now_or_never() {
                Some(next) => done = next,
                None => return,
            }
        }
    }
}
