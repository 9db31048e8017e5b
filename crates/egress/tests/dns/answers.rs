//! What is answered, and what is not.

use std::{net::Ipv4Addr, sync::Arc};

use firkin_egress::{AttemptKind, Decision, Grant, Refusal, Told};
use hickory_proto::{
    op::{Edns, ResponseCode},
    rr::RecordType,
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::scene::{PATIENCE, addresses, answer, ask, book, exchange, question, serve, way};

#[tokio::test]
async fn an_allowed_name_is_answered_with_its_addresses() {
    let book = Arc::new(book(&[("example.com", &["1.2.3.4", "1.2.3.5"]), ("a.example.org", &["4.3.2.1"])]));
    let ways = watch::Sender::new(way(&["example.com", "*.example.org"], &book));
    let served = serve(ways.subscribe()).await;
    let reply = ask(&served, "eXample.COM.", RecordType::A).await;
    assert_eq!(
        (reply.metadata.response_code, addresses(&reply)),
        (ResponseCode::NoError, vec!["1.2.3.4".into(), "1.2.3.5".into()])
    );
    assert_eq!(reply.answers[0].ttl, 7);
    assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
    assert_eq!(answer(&served, "a.example.org.", RecordType::A).await.1, ["4.3.2.1"]);
    assert_eq!(*book.asked.lock().unwrap(), ["example.com", "a.example.org"], "in its normal form, not in the client's");
}

#[tokio::test]
async fn nothing_of_a_name_that_is_not_allowed_is_sent_on() {
    let book = Arc::new(book(&[("secret.evil.test", &["6.6.6.6"]), ("example.com", &["1.2.3.4"])]));
    let ways = watch::Sender::new(way(&["example.com"], &book));
    let served = serve(ways.subscribe()).await;
    let mut told = served.audit.read();
    let kinds =
        [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::ANY, RecordType::HTTPS, RecordType::PTR, RecordType::NULL];
    for name in ["secret.evil.test.", "a.example.com.", "example.com.evil.test.", "4.3.2.1.in-addr.arpa.", "."] {
        for kind in kinds {
            assert_eq!(answer(&served, name, kind).await, (ResponseCode::NXDomain, vec![]), "{name} {kind}");
            let Some(Told::Attempt(attempt)) = told.already() else { panic!("it is told: {name} {kind}") };
            assert_eq!((attempt.kind, &attempt.decision), (AttemptKind::Question, &Decision::Denied(Refusal::Name)));
        }
    }
    // Labels of bytes that no name of a host has, and one with a dot in it.
    for byte in [0, 0xff, b'.', b'\\', b' '] {
        let mut bytes = question("aXexample.com.", RecordType::A).to_vec().unwrap();
        let at = bytes.iter().position(|byte| *byte == b'X').unwrap();
        bytes[at] = byte;
        assert_eq!(exchange(served.udp, &bytes).await.metadata.response_code, ResponseCode::NXDomain, "{byte}");
    }
    // Of an allowed name, what may carry something else.
    for kind in [RecordType::TXT, RecordType::ANY, RecordType::NULL, RecordType::AXFR] {
        assert_eq!(answer(&served, "example.com.", kind).await, (ResponseCode::Refused, vec![]), "{kind}");
    }
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
        assert_eq!(answer(&served, "example.com.", kind).await, (ResponseCode::NoError, vec![]), "{kind}");
    }
    assert!(book.asked.lock().unwrap().is_empty(), "nobody was asked");
}

#[tokio::test]
async fn who_is_denied_and_takes_extended_errors_is_told_why() {
    let ways = watch::Sender::new(way(&["example.com"], &Arc::new(book(&[]))));
    let served = serve(ways.subscribe()).await;
    let mut message = question("evil.test.", RecordType::A);
    message.set_edns(Edns::new());
    let reply = exchange(served.udp, &message.to_vec().unwrap()).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let options = reply.edns.unwrap();
    let why = options.option(15.into()).map(|option| Vec::<u8>::try_from(option).unwrap());
    assert_eq!(why.as_deref(), Some(&[0, 15][..]), "blocked");
    assert!(ask(&served, "evil.test.", RecordType::A).await.edns.is_none(), "who does not take them gets none");
}

#[tokio::test]
async fn an_allowed_name_does_not_lead_to_what_is_ours() {
    let known: &[(&'static str, &[&str])] =
        &[("both.test", &["127.0.0.1", "1.2.3.4", "10.0.0.1"]), ("ours.test", &["127.0.0.1", "10.1.2.3"]), ("none.test", &[])];
    let ways = watch::Sender::new(way(&["*.test"], &Arc::new(book(known))));
    let served = serve(ways.subscribe()).await;
    let mut told = served.audit.read();
    assert_eq!(answer(&served, "both.test.", RecordType::A).await, (ResponseCode::NoError, vec!["1.2.3.4".into()]));
    assert_eq!(answer(&served, "ours.test.", RecordType::A).await, (ResponseCode::NXDomain, vec![]));
    assert_eq!(answer(&served, "none.test.", RecordType::A).await, (ResponseCode::NoError, vec![]));
    assert_eq!(answer(&served, "gone.test.", RecordType::A).await, (ResponseCode::NXDomain, vec![]));
    let mut decisions = Vec::new();
    while let Some(Told::Attempt(attempt)) = told.already() {
        decisions.push((attempt.name.as_ref().unwrap().to_string(), attempt.decision.clone()));
    }
    let allowed = || Decision::Allowed(Grant::Rule("*.test".parse().unwrap()));
    let expected = [
        ("both.test", allowed()),
        ("ours.test", Decision::Denied(Refusal::Bounds("127.0.0.0/8".parse().unwrap()))),
        ("none.test", allowed()),
        ("gone.test", allowed()),
    ];
    assert_eq!(decisions, expected.map(|(name, decision)| (name.to_owned(), decision)));
    assert_eq!(served.resolver.answers().addresses(), [Ipv4Addr::new(1, 2, 3, 4)]);
}

#[tokio::test]
async fn rules_that_change_count_at_once_and_forget_what_was_given_out() {
    let mut slow = book(&[("slow.test", &["1.1.1.1"]), ("quick.test", &["2.2.2.2"])]);
    slow.slow = Some(("slow.test", Notify::new()));
    let book = Arc::new(slow);
    let ways = watch::Sender::new(way(&["*.test"], &book));
    let served = serve(ways.subscribe()).await;
    let answers = served.resolver.answers();
    let mut changes = answers.changes();
    assert_eq!(answer(&served, "quick.test.", RecordType::A).await.1, ["2.2.2.2"]);
    timeout(PATIENCE, changes.changed()).await.expect("an address is told").unwrap();
    assert_eq!(answers.addresses(), [Ipv4Addr::new(2, 2, 2, 2)]);
    let change = async {
        let asked = || book.asked.lock().unwrap().len() == 2;
        while !asked() {
            tokio::task::yield_now().await;
        }
        ways.send_replace(way(&["quick.test"], &book));
        assert_eq!(answers.addresses(), [] as [Ipv4Addr; 0]);
        book.slow.as_ref().unwrap().1.notify_one();
    };
    let (reply, ()) = tokio::join!(answer(&served, "slow.test.", RecordType::A), change);
    assert_eq!(reply, (ResponseCode::NXDomain, vec![]), "the answer came after the change");
    assert_eq!(answers.addresses(), [] as [Ipv4Addr; 0]);
    assert_eq!(answer(&served, "quick.test.", RecordType::A).await.1, ["2.2.2.2"]);
}

#[tokio::test]
async fn more_addresses_than_every_client_takes_are_left_out() {
    let many: Vec<String> = (0..100).map(|last| format!("1.2.3.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)].map(String::as_str).join(".");
    let long: &'static str = Box::leak(long.into_boxed_str());
    let ways = watch::Sender::new(way(&["*"], &Arc::new(book(&[(long, &many)]))));
    let served = serve(ways.subscribe()).await;
    let mut message = question(&format!("{long}."), RecordType::A);
    message.set_edns(Edns::new());
    let reply = exchange(served.udp, &message.to_vec().unwrap()).await;
    assert_eq!(reply.answers.len(), 12);
}
