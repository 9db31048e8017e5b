//! nftables without the `nft` program: transactions of tables, chains and rules, sent over netlink.
//!
//! Messages and attributes come from `netlink-packet-netfilter` (MIT). It has no types for six of the expressions that we use
//! (`ct`, `fib`, `connlimit`, `limit`, `masq`, `redir`), so those are written here as plain attributes, after Linux
//! `include/uapi/linux/netfilter/nf_tables.h`. The other crates that speak nftables are GPL, call `nft`, or need C libraries.
//!
//! A [`Batch`] is one kernel transaction: all of it takes effect at once, or none. Registers hold integers in host order and
//! packet fields in network order.

use std::{io, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, HookNumber, Immediate, InetHookNumber,
        Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
        Verdict, VerdictAttribute,
    },
    none::ControlMessage,
};
use rtnetlink::{
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
        NetlinkPayload,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};

/// `NFNL_SUBSYS_NFTABLES`: which subsystem a batch is for.
const SUBSYSTEM: u16 = 10;
/// Answers to a batch are acknowledgements and errors, which echo at most the message they answer: 64 KiB hold any of ours.
const ANSWER_BYTES: usize = 64 << 10;
/// Datagrams read for one request before we call it a protocol error. Of a batch, only what is refused is
/// answered, and its end; the first refusal ends the reading.
const MAX_ANSWERS: usize = 256;

/// Why the kernel did not take a transaction, or did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The netlink socket failed.
    #[error("cannot talk to nftables")]
    Socket(#[source] io::Error),
    /// The kernel refused one message, and with it the whole transaction.
    #[error("the kernel refused `{message}`")]
    Refused {
        /// The message, such as `rule 3 of from_guests`.
        message: String,
        /// Its errno.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer was not understood, or did not come.
    #[error("the kernel did not answer nftables request `{0}` as netlink prescribes")]
    Protocol(String),
}

/// When in a packet's way a chain runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum HookPoint {
    /// Before routing, connection tracking and address translation.
    Raw,
    /// Before routing, where destination addresses are translated: the first packet of a flow.
    DestinationNat,
    /// For the namespace's own sockets.
    Input,
    /// Routed through, before the chains of `Forward`.
    EarlyForward,
    /// Routed through.
    Forward,
    /// From the namespace's own sockets.
    Output,
    /// After routing, where source addresses are translated.
    SourceNat,
}

impl HookPoint {
    fn kind(self) -> &'static str {
        match self {
            Self::Raw | Self::Input | Self::EarlyForward | Self::Forward | Self::Output => "filter",
            Self::DestinationNat | Self::SourceNat => "nat",
        }
    }

    /// Number and priority, as `linux/netfilter.h` and `linux/netfilter_ipv4.h` have them.
    fn place(self) -> (InetHookNumber, i32) {
        match self {
            Self::Raw => (InetHookNumber::PreRouting, -300),
            Self::DestinationNat => (InetHookNumber::PreRouting, -100),
            Self::Input => (InetHookNumber::LocalIn, 0),
            Self::EarlyForward => (InetHookNumber::Forward, -10),
            Self::Forward => (InetHookNumber::Forward, 0),
            Self::Output => (InetHookNumber::LocalOut, 0),
            Self::SourceNat => (InetHookNumber::PostRouting, 100),
        }
    }
}

/// The verdict on a packet that no rule of a chain decided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Policy {
    /// It is dropped.
    Drop = 0,
    /// It goes on to the next chain.
    Accept = 1,
}

/// States of connection tracking, as bits (`NF_CT_STATE_BIT`).
#[derive(Debug, Clone, Copy)]
pub(super) enum CtState {
    /// A reply, something after the first reply, or an error about either.
    EstablishedOrRelated = 0b110,
    /// The first packet of a flow.
    New = 0b1000,
}

/// What a rate is of (`NFT_LIMIT_PKTS`, `NFT_LIMIT_PKT_BYTES`).
#[derive(Debug, Clone, Copy)]
pub(super) enum Measure {
    /// Packets.
    Packets = 0,
    /// Bytes of packets.
    Bytes = 1,
}

/// The interfaces that a rule is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Interface<'a> {
    /// The one with this name.
    Named(&'a str),
    /// All whose name begins so.
    Prefixed(&'a str),
}

impl Interface<'_> {
    /// What an interface name in a register is compared with. The kernel pads names with zeros to 16 bytes; a comparison
    /// that is shorter than that compares the beginning.
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Named(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(16, 0);
                bytes
            }
            Self::Prefixed(prefix) => prefix.as_bytes().to_vec(),
        }
    }
}

/// Conditions, read left to right, and what to do when all of them hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule(Vec<Expressions>);

impl Rule {
    /// Matches everything.
    pub(super) fn all() -> Self {
        Self::default()
    }

    /// Came in by `interface`.
    pub(super) fn from(self, interface: Interface<'_>) -> Self {
        self.meta(MetaKey::Iifname).compare(Operator::Equal, interface.bytes())
    }

    /// Did not come in by `interface`.
    pub(super) fn not_from(self, interface: Interface<'_>) -> Self {
        self.meta(MetaKey::Iifname).compare(Operator::NotEqual, interface.bytes())
    }

    /// Goes out by `interface`.
    pub(super) fn to(self, interface: Interface<'_>) -> Self {
        self.meta(MetaKey::Oifname).compare(Operator::Equal, interface.bytes())
    }

    /// Does not go out by `interface`.
    pub(super) fn not_to(self, interface: Interface<'_>) -> Self {
        self.meta(MetaKey::Oifname).compare(Operator::NotEqual, interface.bytes())
    }

    /// Is IPv4. Must precede any condition on addresses in an `inet` table.
    pub(super) fn ipv4(self) -> Self {
        self.meta(MetaKey::Nfproto).compare(Operator::Equal, vec![NetfilterProtoFamily::IPv4.into()])
    }

    /// Is not IPv4.
    pub(super) fn not_ipv4(self) -> Self {
        self.meta(MetaKey::Nfproto).compare(Operator::NotEqual, vec![NetfilterProtoFamily::IPv4.into()])
    }

    /// Its source address is in `net`.
    pub(super) fn source(self, net: Ipv4Net) -> Self {
        self.address(12, net, Operator::Equal)
    }

    /// Its source address is not in `net`.
    pub(super) fn source_outside(self, net: Ipv4Net) -> Self {
        self.address(12, net, Operator::NotEqual)
    }

    /// Its destination address is in `net`.
    pub(super) fn destination(self, net: Ipv4Net) -> Self {
        self.address(16, net, Operator::Equal)
    }

    /// Its destination is an address of this machine, a broadcast or a multicast address.
    pub(super) fn destination_not_unicast(self) -> Self {
        const RTN_UNICAST: u32 = 1;
        let (register, result, flags) = (1u32, 3u32, 2u32); // register 1, FIB_RESULT_ADDRTYPE, F_DADDR
        self.other("fib", vec![word(1, register), word(2, result), word(3, flags)])
            .compare(Operator::NotEqual, RTN_UNICAST.to_ne_bytes().to_vec())
    }

    /// Its transport is `protocol` (an IP protocol number).
    pub(super) fn protocol(self, protocol: u8) -> Self {
        self.meta(MetaKey::L4Proto).compare(Operator::Equal, vec![protocol])
    }

    /// Its transport is `protocol` (an IP protocol number) to `port`.
    pub(super) fn port(self, protocol: u8, port: u16) -> Self {
        self.protocol(protocol).payload(2, 2, 2).compare(Operator::Equal, port.to_be_bytes().to_vec())
    }

    /// It comes from a socket with this mark (`SO_MARK`).
    pub(super) fn marked(self, mark: u32) -> Self {
        self.meta(MetaKey::Mark).compare(Operator::Equal, mark.to_ne_bytes().to_vec())
    }

    /// Connection tracking has it in `state`.
    pub(super) fn tracked(self, state: CtState) -> Self {
        self.ct(0).mask((state as u32).to_ne_bytes()).compare(Operator::NotEqual, vec![0; 4])
    }

    /// Its destination was not translated.
    pub(super) fn not_redirected(self) -> Self {
        self.translated(Operator::Equal)
    }

    /// Its destination was translated.
    pub(super) fn redirected(self) -> Self {
        self.translated(Operator::NotEqual)
    }

    fn translated(self, operator: Operator) -> Self {
        const IPS_DST_NAT: u32 = 1 << 5;
        self.ct(2).mask(IPS_DST_NAT.to_ne_bytes()).compare(operator, vec![0; 4])
    }

    /// It would be a new flow while `count` are already tracked.
    pub(super) fn flows_above(self, count: u32) -> Self {
        const INVERT: u32 = 1;
        self.other("connlimit", vec![word(1, count), word(2, INVERT)])
    }

    /// It is above `rate` a second of what `measure` counts, with a burst of a tenth of a second's worth beside.
    pub(super) fn rate_above(self, rate: u64, measure: Measure) -> Self {
        const INVERT: u32 = 1;
        const SECOND: u64 = 1;
        let burst = u32::try_from(rate / 10).unwrap_or(u32::MAX).max(1);
        self.other(
            "limit",
            vec![
                DefaultNla::new(1, rate.to_be_bytes().to_vec()),
                DefaultNla::new(2, SECOND.to_be_bytes().to_vec()),
                word(3, burst),
                word(4, measure as u32),
                word(5, INVERT),
            ],
        )
    }

    /// Let it go on to the next chain.
    pub(super) fn accept(self) -> Self {
        self.verdict(Policy::Accept)
    }

    /// Drop it.
    pub(super) fn drop_packet(self) -> Self {
        self.verdict(Policy::Drop)
    }

    /// Have it come to `port` of this namespace, at the address of the interface that it came in by.
    pub(super) fn redirect(mut self, port: u16) -> Self {
        let register = 8; // NFT_REG32_00: a register for four bytes.
        self.0.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Other(register)),
            Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
        ]));
        self.other("redir", vec![word(1, register)])
    }

    /// Give it the address of the interface that it leaves by.
    pub(super) fn masquerade(self) -> Self {
        self.other("masq", Vec::new())
    }

    fn verdict(mut self, policy: Policy) -> Self {
        let code = VerdictAttribute::Code(Verdict::Other(policy as u32));
        self.0.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![code])),
        ]));
        self
    }

    fn meta(mut self, key: MetaKey) -> Self {
        self.0.push(Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)]));
        self
    }

    fn ct(self, key: u32) -> Self {
        self.other("ct", vec![word(1, 1), word(2, key)])
    }

    /// Loads `len` bytes at `offset` of header `base` (1 network, 2 transport).
    fn payload(mut self, base: u32, offset: u32, len: u32) -> Self {
        self.0.push(Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(len),
        ]));
        self
    }

    fn address(mut self, offset: u32, net: Ipv4Net, operator: Operator) -> Self {
        self = self.payload(1, offset, 4);
        if net.prefix_len() < 32 {
            self = self.mask(net.netmask().octets());
        }
        self.compare(operator, net.network().octets().to_vec())
    }

    fn mask(mut self, mask: [u8; 4]) -> Self {
        self.0.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(4),
            Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
            Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
        ]));
        self
    }

    fn compare(mut self, operator: Operator, value: Vec<u8>) -> Self {
        self.0.push(Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value)),
        ]));
        self
    }

    fn other(mut self, name: &str, attributes: Vec<DefaultNla>) -> Self {
        self.0.push(Expressions::Other { expression_type: name.into(), attributes });
        self
    }
}

/// A 32-bit attribute, big-endian as all of nftables.
fn word(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// One transaction on one table of family `inet`.
#[derive(Debug)]
pub(super) struct Batch {
    table: String,
    messages: Vec<(String, NetlinkMessage<NetfilterMessage>)>,
}

impl Batch {
    /// Creates `table`.
    pub(super) fn create(table: impl Into<String>) -> Self {
        let mut batch = Self { table: table.into(), messages: Vec::new() };
        batch.table_message("create", NfTablesMessage::NewTable, NLM_F_CREATE);
        batch
    }

    /// Changes chains of `table`, which is created when there is none.
    pub(super) fn amend(table: impl Into<String>) -> Self {
        Self::create(table)
    }

    /// Replaces `table`, whatever it held, by an empty one. Takes some milliseconds more than creating one: the kernel waits for
    /// packets that see the old one.
    pub(super) fn replace(table: impl Into<String>) -> Self {
        let mut batch = Self::delete(table);
        batch.table_message("create", NfTablesMessage::NewTable, NLM_F_CREATE);
        batch
    }

    /// Deletes `table`; no error when there is none.
    pub(super) fn delete(table: impl Into<String>) -> Self {
        // Deleting what is absent fails, so it is created first; this takes effect in one step with what follows.
        let mut batch = Self::create(table);
        batch.table_message("delete", NfTablesMessage::DeleteTable, 0);
        batch
    }

    fn table_message(&mut self, verb: &str, wrap: fn(TableMessage) -> NfTablesMessage, flags: u16) {
        let attributes = vec![TableAttribute::Name(self.table.clone())];
        let name = format!("{verb} table {}", self.table);
        self.push(name, wrap(TableMessage { attributes }), flags);
    }

    /// Adds a chain and its rules, in order.
    pub(super) fn chain(mut self, name: &str, hook: HookPoint, policy: Policy, rules: Vec<Rule>) -> Self {
        self.empty_chain(name, hook, policy);
        self.rules(name, rules);
        self
    }

    /// Gives a chain other rules, or adds it. Packets meet the old ones until they meet the new ones.
    pub(super) fn refill(mut self, name: &str, hook: HookPoint, policy: Policy, rules: Vec<Rule>) -> Self {
        self.empty_chain(name, hook, policy);
        let attributes = vec![RuleAttribute::Table(self.table.clone()), RuleAttribute::Chain(name.into())];
        self.push(format!("flush of {name}"), NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
        self.rules(name, rules);
        self
    }

    fn empty_chain(&mut self, name: &str, hook: HookPoint, policy: Policy) {
        let (number, priority) = hook.place();
        let attributes = vec![
            ChainAttribute::Table(self.table.clone()),
            ChainAttribute::Name(name.into()),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(number)),
                Hook::Priority(u32::from_ne_bytes(priority.to_ne_bytes())),
            ]),
            ChainAttribute::Policy(policy as u32),
            ChainAttribute::Type(hook.kind().into()),
        ];
        self.push(format!("chain {name}"), NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE);
    }

    fn rules(&mut self, name: &str, rules: Vec<Rule>) {
        for (at, rule) in rules.into_iter().enumerate() {
            let attributes = vec![
                RuleAttribute::Table(self.table.clone()),
                RuleAttribute::Chain(name.into()),
                RuleAttribute::Expressions(rule.0.into_iter().map(Into::into).collect()),
            ];
            let message = NfTablesMessage::NewRule(RuleMessage { attributes });
            self.push(format!("rule {at} of {name}"), message, NLM_F_CREATE | NLM_F_APPEND);
        }
    }

    fn push(&mut self, name: String, message: NfTablesMessage, flags: u16) {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
        message.header.flags = NLM_F_REQUEST | flags;
        self.messages.push((name, message));
    }

    /// Applies the transaction in the calling thread's network namespace. Returns when it is in force.
    pub(super) fn commit(&self) -> Result<(), NftError> {
        self.prepare().commit()
    }

    /// The transaction as it is sent, for one that is applied in many namespaces.
    pub(super) fn prepare(&self) -> PreparedBatch {
        let (bytes, names) = self.encode();
        PreparedBatch { table: self.table.clone(), bytes, names }
    }

    /// The bytes to send, and a name for each message at its sequence number.
    fn encode(&self) -> (Vec<u8>, Vec<String>) {
        let mut names = vec!["begin of batch".to_owned()];
        let mut messages = vec![control(ControlMessage::BatchBegin)];
        for (name, message) in &self.messages {
            names.push(name.clone());
            messages.push(message.clone());
        }
        // Errors always come; one acknowledgement says that there was none.
        if let Some(last) = messages.last_mut() {
            last.header.flags |= NLM_F_ACK;
        }
        names.push("end of batch".to_owned());
        messages.push(control(ControlMessage::BatchEnd));
        let mut bytes = Vec::new();
        for (sequence, message) in (0u32..).zip(&mut messages) {
            message.header.sequence_number = sequence;
            append(&mut bytes, message);
        }
        (bytes, names)
    }
}

/// A transaction in the form that the kernel takes.
#[derive(Debug)]
pub(super) struct PreparedBatch {
    table: String,
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl PreparedBatch {
    /// [`Batch::commit`].
    ///
    /// The kernel works on a batch inside `send`, and has queued its answers when that returns: nothing here waits.
    pub(super) fn commit(&self) -> Result<(), NftError> {
        let names = &self.names;
        let socket = Connection::open()?;
        socket.send(&self.bytes)?;
        socket.answers(&self.table, |sequence, payload| {
            let at = usize::try_from(sequence).ok().filter(|at| *at < names.len());
            let last = at == Some(names.len() - 2); // before the end of the batch
            match payload {
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    let message = at.map_or_else(|| "batch".to_owned(), |at| names[at].clone());
                    Some(Err(NftError::Refused { message, source: error.to_io() }))
                }
                NetlinkPayload::Error(_) if last => Some(Ok(())),
                _ => None,
            }
        })
    }
}

fn control(message: ControlMessage) -> NetlinkMessage<NetfilterMessage> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
    message.header.flags = NLM_F_REQUEST;
    message
}

/// Appends `message`, padded as netlink wants.
pub(super) fn append(bytes: &mut Vec<u8>, message: &mut NetlinkMessage<NetfilterMessage>) {
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

/// Names of the `inet` tables in the calling thread's network namespace.
pub(super) fn tables() -> Result<Vec<String>, NftError> {
    const QUESTION: &str = "list tables";
    let socket = Connection::open()?;
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let body = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, body));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut bytes = Vec::new();
    append(&mut bytes, &mut message);
    socket.send(&bytes)?;
    let mut names = Vec::new();
    socket.answers(QUESTION, |_, payload| match payload {
        NetlinkPayload::Done(_) => Some(Ok(())),
        NetlinkPayload::Error(error) => Some(Err(NftError::Refused { message: QUESTION.into(), source: error.to_io() })),
        NetlinkPayload::InnerMessage(message) => {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = message.inner {
                names.extend(table.attributes.into_iter().find_map(|attribute| match attribute {
                    TableAttribute::Name(name) => Some(name),
                    _ => None,
                }));
            }
            None
        }
        _ => None,
    })?;
    Ok(names)
}

/// A netlink socket to the kernel's nftables, in the namespace of the thread that opened it.
pub(super) struct Connection(Socket);

impl Connection {
    pub(super) fn open() -> Result<Self, NftError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            Ok(Self(socket))
        };
        open().map_err(NftError::Socket)
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), NftError> {
        let sent = self.0.send(bytes, 0).map_err(NftError::Socket)?;
        if sent == bytes.len() { Ok(()) } else { Err(NftError::Protocol("send".into())) }
    }

    /// Gives every answer to `judge` until it has a result.
    pub(super) fn answers(
        &self,
        request: &str,
        mut judge: impl FnMut(u32, NetlinkPayload<NetfilterMessage>) -> Option<Result<(), NftError>>,
    ) -> Result<(), NftError> {
        self.messages(request, |buffer| match NetlinkMessage::<NetfilterMessage>::deserialize(buffer.into_inner()) {
            Ok(message) => judge(message.header.sequence_number, message.payload),
            Err(_) => Some(Err(NftError::Protocol(request.into()))),
        })
    }

    /// The same for answers that are not taken apart.
    pub(super) fn messages(
        &self,
        request: &str,
        mut judge: impl FnMut(NetlinkBuffer<&[u8]>) -> Option<Result<(), NftError>>,
    ) -> Result<(), NftError> {
        let protocol = || NftError::Protocol(request.into());
        for _ in 0..MAX_ANSWERS {
            let mut buffer = Vec::with_capacity(ANSWER_BYTES);
            self.0.recv(&mut buffer, 0).map_err(NftError::Socket)?;
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(|_| protocol())?;
                let length = message.length() as usize;
                if let Some(result) = judge(message) {
                    return result;
                }
                rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
            }
        }
        Err(protocol())
    }
}

/// The network that holds exactly `address`.
pub(super) fn single(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rule: Rule) -> Batch {
        Batch::replace("firkin_test").chain("first", HookPoint::Forward, Policy::Accept, vec![Rule::all().accept(), rule])
    }

    /// In a namespace of its own; `None` where we may not make one.
    #[expect(clippy::print_stderr, reason = "a skip is told")]
    fn in_namespace<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let job = move || super::super::namespace::enter_new().is_ok().then(job);
        let done = std::thread::spawn(job).join().unwrap();
        if done.is_none() {
            eprintln!("skipped: making network namespaces needs root");
        }
        done
    }

    #[test]
    fn messages_are_numbered_and_fill_the_batch() {
        let (bytes, names) = batch(Rule::all().drop_packet()).encode();
        let mut rest = &bytes[..];
        for (at, name) in names.iter().enumerate() {
            let header = NetlinkBuffer::new_checked(rest).unwrap();
            assert_eq!(header.sequence_number() as usize, at, "{name}");
            let is_last_of_ours = at == names.len() - 2;
            assert_eq!(header.flags() & NLM_F_ACK != 0, is_last_of_ours, "{name}");
            rest = &rest[(header.length() as usize).next_multiple_of(4)..];
        }
        assert!(rest.is_empty());
        assert_eq!(names[names.len() - 2], "rule 1 of first");
    }

    #[test]
    fn a_refused_rule_is_named_and_nothing_of_its_batch_stays() {
        in_namespace(|| {
            // Masquerading is for chains that translate.
            let error = batch(Rule::all().masquerade()).commit().unwrap_err();
            assert!(matches!(&error, NftError::Refused { message, .. } if message == "rule 1 of first"), "{error:?}");
            assert_eq!(tables().unwrap(), Vec::<String>::new());
        });
    }

    #[test]
    fn tables_are_replaced_and_deleted_as_often_as_one_likes() {
        in_namespace(|| {
            for _ in 0..2 {
                batch(Rule::all().drop_packet()).commit().unwrap();
                assert_eq!(tables().unwrap(), ["firkin_test"]);
            }
            for _ in 0..2 {
                Batch::delete("firkin_test").commit().unwrap();
                assert_eq!(tables().unwrap(), Vec::<String>::new());
            }
        });
    }
}
