//! Who is told what, who missed it, and what the ring keeps.

use super::*;

fn host(holds: bool) -> What {
    What::Host { state: ConditionState { condition: Condition::ShortOfDisk, holds } }
}

fn build(reason: usize) -> What {
    let reason = Some("x".repeat(reason));
    What::Build { event: BuildEvent::Failed, template_id: "t".into(), build_id: "b".into(), reason }
}

fn team(text: &str) -> TeamId {
    text.parse().unwrap()
}

fn numbers(reader: &mut Reader) -> Vec<Result<u64, Missed>> {
    std::iter::from_fn(|| reader.try_next())
        .map(|told| match told {
            Told::Change(change) => Ok(change.id.number),
            Told::Missed(missed) => Err(missed),
        })
        .collect()
}

#[test]
fn each_is_told_its_own_and_goes_on_where_it_was() {
    let feed = Feed::new();
    let of = |name: &str| Scope::Team(team(name));
    let (mut a, mut b, mut first) = (feed.read(of("a"), None), feed.read(of("b"), None), feed.read(of("firkin"), None));
    feed.tell(Some(&team("a")), build(0));
    feed.tell(Some(&team("b")), build(0));
    feed.tell(None, host(true));
    let pool = What::Pool { pool: crate::restore::warm::PoolStatus::default() };
    feed.tell(None, pool);
    assert_eq!(
        (numbers(&mut a), numbers(&mut b), numbers(&mut first)),
        (vec![Ok(1), Ok(3)], vec![Ok(2), Ok(3)], vec![Ok(3), Ok(4)])
    );
    assert_eq!(numbers(&mut feed.read(Scope::Host, Some(ChangeId { number: 1, ..feed.place() }))), [Ok(2), Ok(3), Ok(4)]);
    // What was for others moves the place too.
    assert_eq!(a.place(), feed.place());
}

#[test]
fn who_was_overtaken_or_comes_from_elsewhere_is_told_so_once() {
    let feed = Feed::new();
    let mut slow = feed.read(Scope::Host, None);
    for _ in 0..=MAX_CHANGES {
        feed.tell(None, host(true));
    }
    assert_eq!(numbers(&mut slow), [Err(Missed::TooOld)]);
    feed.tell(None, host(false));
    let newest = u64::try_from(MAX_CHANGES).unwrap() + 2;
    assert_eq!(numbers(&mut slow), [Ok(newest)]);
    let place = feed.place();
    for alien in [ChangeId { epoch: place.epoch ^ 1, number: 1 }, ChangeId { number: u64::MAX, ..place }] {
        let mut reader = feed.read(Scope::Host, Some(alien));
        feed.tell(None, host(true));
        assert!(matches!(numbers(&mut reader)[..], [Err(Missed::AnotherServer), Ok(_)]), "{alien}");
    }
}

#[test]
fn the_ring_is_bounded_by_what_it_weighs() {
    let feed = Feed::new();
    let mut reader = feed.read(Scope::Host, None);
    for _ in 0..20 {
        feed.tell(None, build(MAX_BYTES / 10));
    }
    let held = || {
        let ring = feed.ring();
        (ring.count, ring.bytes <= MAX_BYTES)
    };
    assert_eq!(held(), (9, true));
    assert_eq!(numbers(&mut reader), [Err(Missed::TooOld)]);
    feed.tell(None, build(2 * MAX_BYTES));
    assert_eq!((held().0, numbers(&mut reader)), (1, vec![Ok(21)]));
}

#[test]
fn nobody_is_overtaken_by_what_another_team_does() {
    let feed = Feed::new();
    let of = |name: &str| feed.read(Scope::Team(team(name)), None);
    let (mut loud, mut quiet, mut all) = (of("loud"), of("quiet"), feed.read_what_is_left(Scope::Host));
    feed.tell(Some(&team("quiet")), build(0));
    for _ in 0..2 * MAX_CHANGES {
        feed.tell(Some(&team("loud")), build(0));
    }
    feed.tell(Some(&team("quiet")), build(0));
    // The same by weight.
    for _ in 0..20 {
        feed.tell(Some(&team("loud")), build(MAX_BYTES / 10));
    }
    let newest = u64::try_from(2 * MAX_CHANGES).unwrap() + 22;
    assert_eq!(numbers(&mut quiet), [Ok(1), Ok(newest - 20)]);
    assert_eq!(quiet.place(), feed.place());
    assert_eq!(numbers(&mut loud), [Err(Missed::TooOld)]);
    // Who wants what is left is told once that something is missing, and then that.
    let left = numbers(&mut all);
    assert_eq!((left[0], left[1], *left.last().unwrap()), (Err(Missed::TooOld), Ok(1), Ok(newest)));
    assert!(left.contains(&Ok(newest - 20)) && left.is_sorted_by_key(|told| told.unwrap_or(0)));
}

#[test]
fn labels_are_told_where_they_are_short() {
    let labels = |bytes: usize| std::collections::BTreeMap::from([("a".to_owned(), "b".repeat(bytes))]);
    assert_eq!(short_labels(labels(10)), labels(10));
    let left_out = short_labels(labels(MAX_TOLD_LABELS_BYTES));
    assert_eq!(left_out.into_iter().collect::<Vec<_>>(), [("firkin.labels".to_owned(), "too long".to_owned())]);
}

#[tokio::test]
async fn a_reader_waits_and_whoever_watches_is_known() {
    let feed = Feed::new();
    let mut reader = feed.watch(Scope::Host, None);
    feed.watched().await;
    let (told, ()) = tokio::join!(reader.next(), async { feed.tell(None, host(true)) });
    assert!(matches!(told, Told::Change(change) if change.id.number == 1));
    drop(reader);
    let none = tokio::time::timeout(std::time::Duration::ZERO, feed.watched()).await;
    assert!(none.is_err());
}

#[test]
fn an_id_is_read_as_it_is_written() {
    let id = ChangeId { epoch: 0xab, number: 7 };
    assert_eq!(id.to_string(), "00000000000000ab-7");
    assert_eq!(id.to_string().parse(), Ok(id));
    for bad in ["", "-", "ab-7", "00000000000000ab-", "00000000000000ab-+7", "00000000000000ab-x", "0000000000000xab-1", "ä"] {
        assert_eq!(bad.parse::<ChangeId>(), Err(InvalidChangeId), "{bad}");
    }
}

#[test]
fn a_change_has_one_form_on_the_wire() {
    let feed = Feed::new();
    let mut reader = feed.read(Scope::Host, None);
    feed.tell(Some(&team("a")), build(1));
    feed.tell(None, host(true));
    let mut next = || match reader.try_next() {
        Some(Told::Change(change)) => serde_json::to_value(&*change).unwrap(),
        other => panic!("{other:?}"),
    };
    let (first, second) = (next(), next());
    for (field, expected) in [("topic", "build"), ("event", "failed"), ("templateID", "t"), ("buildID", "b"), ("teamID", "a")] {
        assert_eq!(first[field], expected, "{first}");
    }
    assert_eq!(
        (&second["topic"], &second["condition"], &second["holds"]),
        (&"host".into(), &"short_of_disk".into(), &true.into())
    );
    assert!(second.get("teamID").is_none());
}
