//! What rules mean, by examples.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{net::Ipv4Addr, sync::Arc};

use firkin_egress::{
    Bounds, Grant, HostName, List, MAX_RULES, NameError, Policy, Refusal, RuleError, Rules, RulesError, Target, Unnamed,
};
use proptest::prelude::*;

const ALL: &str = "0.0.0.0/0";

fn bounds() -> Arc<Bounds> {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Arc::new(Bounds {
        own: nets(&["203.0.113.7/32", "198.18.0.0/15"]),
        opened: nets(&["10.9.0.0/16", "203.0.113.0/24", "198.18.0.0/16"]),
        closed: nets(&["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16"]),
    })
}

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    Policy::new(Rules::parse(allow, deny).unwrap(), bounds())
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn by(rule: &str) -> Grant {
    Grant::Rule(rule.parse().unwrap())
}

fn against(rule: &str) -> Refusal {
    Refusal::Rule(rule.parse().unwrap())
}

#[test]
fn names_may_be_asked_for_where_they_are_allowed() {
    let closed = policy(&["example.com", "*.example.org", "9.9.9.9"], &[ALL]);
    assert_eq!(closed.asks(&name("example.com")), Ok(by("example.com")));
    assert_eq!(closed.asks(&name("a.example.org")), Ok(by("*.example.org")));
    for other in ["a.example.com", "example.org", "other.test", "example.com.evil.test"] {
        assert_eq!(closed.asks(&name(other)), Err(Refusal::Name), "{other}");
    }
    let open = policy(&[], &["8.8.8.8", "bad.test"]);
    assert_eq!(open.asks(&name("other.test")), Ok(Grant::Undenied));
    assert_eq!(open.asks(&name("bad.test")), Err(against("bad.test")));
    assert_eq!(policy(&["*"], &[ALL]).asks(&name("other.test")), Ok(by("*")));
    // However all of it is written.
    assert_eq!(policy(&[], &["0.0.0.0/1", "128.0.0.0/1"]).asks(&name("other.test")), Err(Refusal::Name));
    assert_eq!(policy(&["example.com"], &["*"]).asks(&name("other.test")), Err(Refusal::Name));
}

#[test]
fn an_allowed_name_is_connected_to_by_name_whatever_address_was_meant() {
    let policy = policy(&["example.com", "bad.example.com"], &[ALL, "bad.example.com"]);
    for (text, meant) in [("example.com", "1.2.3.4"), ("example.com", "127.0.0.1"), ("bad.example.com", "203.0.113.7")] {
        let route = policy.route(Ok(&name(text)), ip(meant));
        assert_eq!(route, Ok((Target::Name(name(text)), by(text))), "{text}, {meant}");
    }
    assert_eq!(policy.route(Ok(&name("other.test")), ip("1.2.3.4")), Err(Refusal::Name));
    assert_eq!(policy.route(Err(Unnamed::NoName), ip("1.2.3.4")), Err(Refusal::Unnamed(Unnamed::NoName)));
}

#[test]
fn an_allowed_address_is_reached_under_any_name() {
    let policy = policy(&["example.com", "9.9.9.0/24"], &[ALL]);
    let route = policy.route(Ok(&name("other.test")), ip("9.9.9.9"));
    assert_eq!(route, Ok((Target::Address(ip("9.9.9.9")), by("9.9.9.0/24"))));
    assert_eq!(policy.unheard(ip("9.9.9.9")), Some(Ok(by("9.9.9.0/24"))));
    assert_eq!(policy.unheard(ip("9.9.8.9")), None);
}

#[test]
fn without_rules_for_names_the_address_decides_at_once() {
    let policy = policy(&["8.8.8.8"], &["8.8.8.0/24"]);
    assert_eq!(policy.unheard(ip("8.8.8.8")), Some(Ok(by("8.8.8.8"))));
    assert_eq!(policy.unheard(ip("8.8.8.9")), Some(Err(against("8.8.8.0/24"))));
    assert_eq!(policy.unheard(ip("9.9.9.9")), Some(Ok(Grant::Undenied)));
    assert_eq!(policy.unheard(ip("10.0.0.1")), Some(Err(Refusal::Bounds("10.0.0.0/8".parse().unwrap()))));
}

#[test]
fn a_denied_name_is_not_reached_where_everything_else_is() {
    let policy = policy(&["4.4.4.4"], &["*.bad.test"]);
    assert_eq!(policy.unheard(ip("9.9.9.9")), None);
    assert_eq!(policy.route(Ok(&name("a.bad.test")), ip("9.9.9.9")), Err(against("*.bad.test")));
    assert_eq!(policy.route(Ok(&name("bad.test")), ip("9.9.9.9")), Ok((Target::Address(ip("9.9.9.9")), Grant::Undenied)));
    assert_eq!(policy.route(Err(Unnamed::Unknown), ip("9.9.9.9")), Ok((Target::Address(ip("9.9.9.9")), Grant::Undenied)));
    // What is allowed is allowed, whatever denies it.
    assert_eq!(policy.route(Ok(&name("a.bad.test")), ip("4.4.4.4")), Ok((Target::Address(ip("4.4.4.4")), by("4.4.4.4"))));
}

#[test]
fn no_rule_opens_what_is_out_of_bounds() {
    let policy = policy(&[ALL, "*", "example.com", "10.0.0.0/8", "203.0.113.7"], &[ALL]);
    for (address, net) in [
        ("10.0.0.1", "10.0.0.0/8"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("169.254.169.254", "169.254.0.0/16"),
        // The operator opens private networks, and neither the host nor other sandboxes.
        ("203.0.113.7", "203.0.113.7/32"),
        ("198.18.0.1", "198.18.0.0/15"),
    ] {
        let refusal = Err(Refusal::Bounds(net.parse().unwrap()));
        assert_eq!(policy.reaches(Some(&name("example.com")), ip(address)), refusal, "{address}");
        assert_eq!(policy.reaches(None, ip(address)), refusal, "{address}");
        assert!(policy.route(Err(Unnamed::NoName), ip(address)).is_err(), "{address}");
    }
    assert!(policy.reaches(None, ip("10.9.0.1")).is_ok());
    assert!(policy.reaches(None, ip("203.0.113.8")).is_ok());
}

#[test]
fn what_tells_no_name_is_filtered_by_the_networks_alone() {
    let networks = |allow: &[&str], deny: &[&str]| {
        let rules = Rules::parse(allow, deny).unwrap();
        let texts = |nets: &mut dyn Iterator<Item = ipnet::Ipv4Net>| nets.map(|net| net.to_string()).collect::<Vec<_>>();
        (rules.name_any(), texts(&mut rules.allowed_networks()), texts(&mut rules.denied_networks()))
    };
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(networks(&["1.1.1.1"], &["8.8.8.8/8"]), (false, texts(&["1.1.1.1/32"]), texts(&["8.0.0.0/8"])));
    assert_eq!(networks(&["a.test", "1.1.1.1"], &[ALL]), (true, texts(&["1.1.1.1/32"]), texts(&[ALL])));
    assert_eq!(networks(&["a.test"], &["*"]), (true, texts(&[]), texts(&[ALL])));
    assert_eq!(networks(&[], &["bad.test"]), (true, texts(&[]), texts(&[])));
}

#[test]
fn lists_that_mean_nothing_are_refused() {
    let parse = |allow: &[&str], deny: &[&str]| Rules::parse(allow, deny).unwrap_err();
    assert_eq!(parse(&["example.com"], &[]), RulesError::NothingDenied);
    assert_eq!(parse(&["*"], &["8.8.8.8", "bad.test"]), RulesError::NothingDenied);
    assert_eq!(parse(&["::1"], &[ALL]), RulesError::Entry(List::Allow, RuleError::Ipv6("::1".to_owned())));
    let source = NameError::Malformed;
    assert_eq!(parse(&[], &["a b"]), RulesError::Entry(List::Deny, RuleError::Name { text: "a b".to_owned(), source }));
    let many = vec!["a.test"; MAX_RULES + 1];
    assert_eq!(parse(&many, &[ALL]), RulesError::TooMany { list: List::Allow, count: MAX_RULES + 1 });
    // There is no IPv6: it is denied whether or not someone says so.
    assert!(Rules::parse(&[] as &[&str], &["::/0", "2606:4700::1"]).is_ok());
}

proptest! {
    #[test]
    fn whatever_the_rules_nothing_out_of_bounds_is_reached(
        allow in proptest::collection::vec("(\\*|\\*\\.)?[a-c]{1,2}\\.test|[0-9]{1,2}\\.[0-9]\\.0\\.0/[0-9]|0\\.0\\.0\\.0/0", 0..6),
        deny in proptest::collection::vec("[0-9]{1,2}\\.0\\.0\\.0/[0-9]|[a-c]\\.test", 0..6),
        called in "[a-c]{1,2}\\.test",
        address in any::<u32>().prop_map(Ipv4Addr::from),
    ) {
        let deny = deny.iter().map(String::as_str).chain([ALL]).collect::<Vec<_>>();
        if let Ok(rules) = Rules::parse(&allow, &deny) {
            let policy = Policy::new(rules, bounds());
            let called = name(&called);
            let closed = policy.bounds().closing(address).is_some();
            prop_assert!(!(closed && policy.reaches(Some(&called), address).is_ok()));
            prop_assert!(!(closed && matches!(policy.unheard(address), Some(Ok(_)))));
            if let Ok((Target::Address(to), _)) = policy.route(Ok(&called), address) {
                prop_assert_eq!(to, address);
                prop_assert!(!closed);
            }
            // What may not be asked for is not connected to by name.
            if let Ok((Target::Name(_), _)) = policy.route(Ok(&called), address) {
                prop_assert!(policy.asks(&called).is_ok());
            }
        }
    }
}
