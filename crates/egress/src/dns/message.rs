//! Messages of the DNS as clients send them, and what they are answered.
//!
//! A name that is not allowed does not exist: programs take `NXDOMAIN` for an answer at once, where they try a refusal or a failure
//! again for seconds. It has no time to live, so nobody remembers it when the rules have changed. Clients that take extended errors
//! (RFC 8914) are told why. Only addresses of IPv4 are given out:
//!
//! * `AAAA` has no records: there is no IPv6.
//! * `HTTPS` and `SVCB` have none either: they would bring the keys that encrypt the name in a TLS greeting, and addresses that
//!   nobody looked at.
//! * Every other type is refused, as is `ANY` (RFC 8482).

use std::{net::Ipv4Addr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, RData, Record, RecordType,
        rdata::{A, opt::EdnsOption},
    },
};

use crate::name::HostName;

/// The option that tells why (RFC 8914, 2).
const EXTENDED_ERROR: u16 = 15;
/// Blocked by who runs the resolver.
const BLOCKED: u16 = 15;
/// A type of record that is not answered.
const NOT_SUPPORTED: u16 = 21;
/// What we say we take over UDP: what passes every network whole.
const MAX_PAYLOAD: u16 = 1232;
/// The identification, the flags and the numbers of records.
const HEADER_BYTES: usize = 12;
/// How long clients may remember an address: a second where the answer has passed, since C libraries are confused by none...
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// ... and a minute, so that a change is seen by programs that look names up again.
const MAX_LIFETIME: Duration = Duration::from_secs(60);

/// What a client sent.
#[derive(Debug)]
pub(crate) enum Received {
    /// A question.
    Question(Question),
    /// No question, and what it is answered.
    Error(Vec<u8>),
    /// Nothing that is answered: an answer, or too little to tell whose it is.
    Noise,
}

/// A question for one name.
#[derive(Debug)]
pub(crate) struct Question {
    /// The name, if it can be one of a host.
    pub(crate) name: Option<HostName>,
    /// What is to be known of it.
    pub(crate) wanted: Wanted,
    header: Metadata,
    query: Query,
    extended: bool,
}

/// What a client wants to know of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Its addresses.
    Addresses,
    /// What no name has here.
    Absent,
    /// What is not answered.
    Other,
}

/// What a question is answered.
#[derive(Debug)]
pub(crate) enum Reply<'a> {
    Addresses(&'a [Ipv4Addr], Duration),
    NoRecords,
    NoName,
    Blocked,
    NotSupported,
    Failed,
}

/// Understands a message.
pub(crate) fn read(bytes: &[u8]) -> Received {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Received::Noise };
    let answers = header[2] & 0x80 != 0;
    if answers {
        return Received::Noise;
    }
    let error = |op_code, code| {
        let message = Message::error_msg(u16::from_be_bytes([header[0], header[1]]), op_code, code);
        message.to_vec().map_or(Received::Noise, Received::Error)
    };
    let op_code = OpCode::from_u8(header[2] >> 3 & 0xf);
    if op_code != OpCode::Query {
        return error(op_code, ResponseCode::NotImp);
    }
    let Ok(message) = Message::from_vec(bytes) else { return error(op_code, ResponseCode::FormErr) };
    let [query] = &message.queries[..] else { return error(op_code, ResponseCode::FormErr) };
    if query.query_class != DNSClass::IN {
        return error(op_code, ResponseCode::Refused);
    }
    let wanted = match query.query_type {
        RecordType::A => Wanted::Addresses,
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => Wanted::Absent,
        _ => Wanted::Other,
    };
    let name = query.name.to_ascii().parse().ok();
    let (query, extended) = (query.clone(), message.edns.is_some());
    Received::Question(Question { name, wanted, header: message.metadata, query, extended })
}

impl Question {
    /// The answer as it is sent.
    pub(crate) fn reply(&self, reply: &Reply<'_>) -> Vec<u8> {
        let (code, why) = match reply {
            Reply::Addresses(..) | Reply::NoRecords => (ResponseCode::NoError, None),
            Reply::NoName => (ResponseCode::NXDomain, None),
            Reply::Blocked => (ResponseCode::NXDomain, Some(BLOCKED)),
            Reply::NotSupported => (ResponseCode::Refused, Some(NOT_SUPPORTED)),
            Reply::Failed => (ResponseCode::ServFail, None),
        };
        let mut message = Message::new(self.header.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.header.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if let Reply::Addresses(addresses, lifetime) = reply {
            let lifetime = (*lifetime).clamp(MIN_LIFETIME, MAX_LIFETIME);
            let seconds = u32::try_from(lifetime.as_secs()).expect("a minute is not long");
            let record = |address: &Ipv4Addr| Record::from_rdata(self.query.name.clone(), seconds, RData::A(A(*address)));
            message.add_answers(addresses.iter().map(record));
        }
        if self.extended {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_PAYLOAD).set_version(0);
            if let Some(why) = why {
                edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, why.to_be_bytes().to_vec()));
            }
            message.set_edns(edns);
        }
        // The name came out of a message, and goes into one.
        message.to_vec().unwrap_or_default()
    }
}
