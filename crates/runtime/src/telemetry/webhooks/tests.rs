//! Whose turn it is, and what waits while nothing can be recorded.

use jiff::Timestamp;

use super::*;
use crate::store::LifecycleKind;

fn head(id: &str, owner: &str, due_ms: i64) -> Head {
    let webhook = Webhook::of_test(id, owner);
    let (event_id, payload) = ("e".to_owned(), "{}".to_owned());
    let delivery =
        Delivery { event_id, kind: LifecycleKind::Created, payload, at: Timestamp::UNIX_EPOCH, attempts: 0, error: None };
    Head { number: 1, webhook, delivery, due_ms }
}

fn ids(heads: &[Head]) -> Vec<&str> {
    heads.iter().map(|head| head.webhook.id.as_str()).collect()
}

#[test]
fn a_team_whose_receivers_hang_leaves_places_to_others() {
    let mut turns = Turns::default();
    let mut heads: Vec<_> = (0..16).map(|n| head(&format!("a{n:02}"), "loud", n)).collect();
    heads.push(head("z", "quiet", 100));
    heads.push(head("later", "quiet", 300));
    let (begun, next) = turns.begin(heads.clone(), 200);
    assert_eq!((ids(&begun), next), (vec!["a00", "a01", "a02", "a03", "z"], Some(300)));
    // What has a place is not begun twice, and no place is free for its team.
    assert!(turns.begin(heads.clone(), 200).0.is_empty());
    // One that was served comes after those that were not.
    turns.busy.remove(&begun[0].webhook.id);
    assert_eq!(ids(&turns.begin(heads.clone(), 200).0), ["a04"]);
    for _ in 0..12 {
        turns.busy.clear();
        turns.begin(heads.clone(), 200);
    }
    let served = heads.iter().filter(|head| turns.served.contains_key(&head.webhook.id)).count();
    assert_eq!(served, 17, "each has had its turn");
    turns.begin(Vec::new(), 200);
    assert!(turns.served.is_empty());
}
