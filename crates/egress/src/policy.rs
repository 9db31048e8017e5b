//! What may be reached: rules that users write, inside bounds that they do not.
//!
//! Precedence is E2B's: what an allowing rule names is allowed, whatever else denies it; what a denying rule names is denied; the
//! rest is allowed. The bounds stand above all rules: an address of the host, of another sandbox, or of a network that is not the
//! internet's is not reached under any name.
//!
//! A name is a permission for addresses that *we* find under it. The address that a client wants to connect to, under a name that is
//! allowed, means nothing: it may have it from a resolver of its own. Where no name is allowed, the address decides alone, and
//! what the client calls it means nothing.
//!
//! A rule that denies a name binds clients that tell their names, and can be gone round by those that do not; whoever wants to be
//! sure denies everything and allows names.

use std::{net::Ipv4Addr, sync::Arc};

use ipnet::Ipv4Net;

use crate::{
    decision::{Grant, Refusal},
    name::HostName,
    rule::{Names, Rule, RuleError},
    sniff::Unnamed,
};

/// Entries of one list. Each is compared with every question and every connection; as many as one list of addresses may have
/// where packets are filtered.
pub const MAX_RULES: usize = 128;

/// Every address.
const EVERYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// What no rule opens. There is no default: whoever forgets it has no policy.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Of this host and of other sandboxes: reached by nobody.
    pub own: Vec<Ipv4Net>,
    /// Parts of `closed` that the operator opened.
    pub opened: Vec<Ipv4Net>,
    /// Networks that are not the internet's: private, link-local, metadata, multicast.
    pub closed: Vec<Ipv4Net>,
}

/// What users allow and deny.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    /// What no rule allows is denied.
    closed: bool,
}

/// Why lists of rules are no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// One entry is no rule.
    #[error("{0} has an entry that is no rule")]
    Entry(List, #[source] RuleError),
    /// More than [`MAX_RULES`].
    #[error("{list} has {count} entries, the limit is {MAX_RULES}")]
    TooMany {
        /// Which.
        list: List,
        /// How many it has.
        count: usize,
    },
    /// Names are allowed where nothing is denied: the list would mean nothing.
    #[error("names can be allowed only where all other traffic is denied (`0.0.0.0/0`)")]
    NothingDenied,
}

/// One of the two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// What is allowed.
    Allow,
    /// What is denied.
    Deny,
}

/// Rules inside bounds.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Rules,
    bounds: Arc<Bounds>,
}

/// Where a connection is made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To an address that is found under this name.
    Name(HostName),
    /// To the address that the client named.
    Address(Ipv4Addr),
}

impl Bounds {
    /// The network that keeps `address` from being reached.
    pub fn closing(&self, address: Ipv4Addr) -> Option<Ipv4Net> {
        let within = |nets: &[Ipv4Net]| nets.iter().find(|net| net.contains(&address)).copied();
        within(&self.own).or_else(|| if within(&self.opened).is_some() { None } else { within(&self.closed) })
    }
}

impl Rules {
    /// Reads both lists. Destinations of IPv6 that are denied are left out: nothing reaches them.
    pub fn parse(allow: &[impl AsRef<str>], deny: &[impl AsRef<str>]) -> Result<Self, RulesError> {
        let allow = parse(List::Allow, allow)?;
        let deny: Vec<Rule> = parse(List::Deny, deny)?;
        let networks: Vec<Ipv4Net> = deny.iter().filter_map(network).collect();
        // Two halves are all of it, too.
        let closed = deny.contains(&Rule::Name(Names::Every)) || Ipv4Net::aggregate(&networks) == [EVERYWHERE];
        if !closed && allow.iter().any(|rule| matches!(rule, Rule::Name(_))) {
            return Err(RulesError::NothingDenied);
        }
        Ok(Self { allow, deny, closed })
    }

    /// Whether names decide anything. Without any, a filter of packets does as well, and nothing needs to be proxied.
    pub fn name_any(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(|rule| matches!(rule, Rule::Name(_)))
    }

    /// The networks that are allowed, for a filter of packets that tell no name.
    pub fn allowed_networks(&self) -> impl Iterator<Item = Ipv4Net> {
        self.allow.iter().filter_map(network)
    }

    /// The networks that are denied, likewise: all of them where nothing but names is allowed.
    pub fn denied_networks(&self) -> impl Iterator<Item = Ipv4Net> {
        let every = self.deny.contains(&Rule::Name(Names::Every)).then_some(EVERYWHERE);
        self.deny.iter().filter_map(network).chain(every)
    }
}

fn parse(list: List, texts: &[impl AsRef<str>]) -> Result<Vec<Rule>, RulesError> {
    if texts.len() > MAX_RULES {
        return Err(RulesError::TooMany { list, count: texts.len() });
    }
    let rules = texts.iter().map(|text| text.as_ref().parse());
    let rules = rules.filter(|rule| !(list == List::Deny && matches!(rule, Err(RuleError::Ipv6(_)))));
    rules.collect::<Result<_, _>>().map_err(|source| RulesError::Entry(list, source))
}

fn network(rule: &Rule) -> Option<Ipv4Net> {
    match rule {
        Rule::Network(net) => Some(*net),
        Rule::Name(_) => None,
    }
}

fn naming<'a>(rules: &'a [Rule], name: &HostName) -> Option<&'a Rule> {
    rules.iter().find(|rule| matches!(rule, Rule::Name(names) if names.contain(name)))
}

fn holding(rules: &[Rule], address: Ipv4Addr) -> Option<&Rule> {
    rules.iter().find(|rule| matches!(rule, Rule::Network(net) if net.contains(&address)))
}

impl Policy {
    /// These rules inside these bounds.
    pub fn new(rules: Rules, bounds: Arc<Bounds>) -> Self {
        Self { rules, bounds }
    }

    /// What keeps an address from being reached whatever rules say.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Whether a name may be asked for.
    pub fn asks(&self, name: &HostName) -> Result<Grant, Refusal> {
        if let Some(rule) = naming(&self.rules.allow, name) {
            return Ok(Grant::Rule(rule.clone()));
        }
        match naming(&self.rules.deny, name) {
            Some(rule) if *rule != Rule::Name(Names::Every) => Err(Refusal::Rule(rule.clone())),
            _ if self.rules.closed => Err(Refusal::Name),
            _ => Ok(Grant::Undenied),
        }
    }

    /// What is decided of a connection to `address` before it has said anything; `None` where its name may matter.
    pub fn unheard(&self, address: Ipv4Addr) -> Option<Result<Grant, Refusal>> {
        let decided =
            !self.rules.name_any() || (self.bounds.closing(address).is_none() && holding(&self.rules.allow, address).is_some());
        decided.then(|| self.reaches(None, address))
    }

    /// Where a connection goes that a client makes to `address` and calls by a name, or by none.
    pub fn route(&self, name: Result<&HostName, Unnamed>, address: Ipv4Addr) -> Result<(Target, Grant), Refusal> {
        if let Ok(name) = name
            && let Some(rule) = naming(&self.rules.allow, name)
        {
            return Ok((Target::Name(name.clone()), Grant::Rule(rule.clone())));
        }
        let names_decide = self.rules.closed && self.rules.allow.iter().any(|rule| matches!(rule, Rule::Name(_)));
        match (self.reaches(name.ok(), address), name) {
            (Ok(grant), _) => Ok((Target::Address(address), grant)),
            (Err(Refusal::Rule(_)), Err(unnamed)) if names_decide => Err(Refusal::Unnamed(unnamed)),
            (Err(Refusal::Rule(_)), Ok(_)) if names_decide => Err(Refusal::Name),
            (Err(refusal), _) => Err(refusal),
        }
    }

    /// Whether a connection to `address`, which is known by `name`, may be. It is asked before a connection is made, and again for
    /// those that are there when rules change.
    pub fn reaches(&self, name: Option<&HostName>, address: Ipv4Addr) -> Result<Grant, Refusal> {
        if let Some(net) = self.bounds.closing(address) {
            return Err(Refusal::Bounds(net));
        }
        let (allow, deny) = (&self.rules.allow, &self.rules.deny);
        if let Some(rule) = name.and_then(|name| naming(allow, name)).or_else(|| holding(allow, address)) {
            return Ok(Grant::Rule(rule.clone()));
        }
        let every = || deny.iter().find(|rule| **rule == Rule::Name(Names::Every));
        match name.and_then(|name| naming(deny, name)).or_else(|| holding(deny, address)).or_else(every) {
            Some(rule) => Err(Refusal::Rule(rule.clone())),
            None => Ok(Grant::Undenied),
        }
    }
}

impl std::fmt::Display for List {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Allow => "the list of what is allowed",
            Self::Deny => "the list of what is denied",
        })
    }
}
