//! Records made by hand: one in which everything holds, and for each invariant one that violates it.

use super::*;
use crate::record::{Leased, Severed, Taken, Trouble, Written};

/// Milliseconds.
const MS: At = 1_000_000;

/// What `s` said from when to when, every 100 ms.
fn voice(epoch: u64, life: &[u64], from: At, to: At) -> Vec<Heard> {
    let word = |at: At| Heard {
        at: at * MS,
        node: 0,
        sandbox: "s".into(),
        epoch,
        life: life.to_vec(),
        can_be_claimed: life.len() > 2,
        sequence: at,
    };
    (from..=to).step_by(100).map(word).collect()
}

fn asked(ask: Ask, from: At, to: At, answer: Answer) -> Asked {
    Asked { node: 0, sandbox: "s".into(), ask, from: from * MS, to: to * MS, answer, epoch: None }
}

fn long() -> Ask {
    Ask::Create { timeout_s: crate::client::LONG_S }
}

/// What was on record of `s` from a time on: nothing, or whose it was in which life.
fn written(at: At, row: Option<(usize, u64, bool)>) -> Written {
    let row = row.map(|(node, epoch, is_paused)| Row { node, term: 1, epoch, is_paused, is_given_up: false });
    Written { at: at * MS, sandbox: "s".into(), row }
}

/// A sandbox that was created, paused and resumed, and everything holds.
fn good() -> Record {
    let lease = |at: At| Leased { at: at * MS, until: (at + 4000) * MS };
    Record {
        heard: [voice(1, &[0, 1], 100, 1000), voice(2, &[0, 1, 2], 2100, 4000)].concat(),
        asked: vec![
            asked(long(), 0, 150, Answer::Done),
            asked(Ask::Pause, 900, 1100, Answer::Done),
            asked(Ask::Resume, 2000, 2200, Answer::Done),
        ],
        written: vec![
            written(120, Some((0, 1, false))),
            written(1050, Some((0, 1, true))),
            written(2050, Some((0, 2, true))),
            written(2150, Some((0, 2, false))),
        ],
        leases: vec![(0..10).map(|turn| lease(turn * 400)).collect()],
        found: vec![("s".into(), Found::Running)],
        ..Record::default()
    }
}

/// Which invariants a record violates.
#[track_caller]
fn check_is(expect: &[&str], change: impl FnOnce(&mut Record)) {
    let mut record = good();
    change(&mut record);
    record.heard.sort_by_key(|word| word.at);
    on_record(&mut record);
    let violations = check(&record);
    let found: std::collections::BTreeSet<&str> = violations.iter().map(|violation| violation.invariant).collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expect, "{violations:#?}");
}

/// Has lives be on record that were heard, where the test says nothing of it.
fn on_record(record: &mut Record) {
    for word in record.heard.iter().filter(|word| word.can_be_claimed) {
        let is_its = |written: &Written| {
            written.sandbox == word.sandbox && written.row.as_ref().is_some_and(|row| row.epoch == word.epoch)
        };
        if !record.written.iter().any(is_its) {
            let row = Row { node: word.node, term: 1, epoch: word.epoch, is_paused: true, is_given_up: false };
            record.written.push(Written { at: word.at, sandbox: word.sandbox.clone(), row: Some(row) });
        }
    }
}

#[test]
fn a_record_in_which_everything_holds_is_let_pass() {
    check_is(&[], |_| {});
    check_is(&[], |record| *record = Record::default());
}

#[test]
fn what_is_written_in_another_order_than_it_may_is_seen() {
    let rows = |record: &mut Record, rows: &[Option<(usize, u64, bool)>]| {
        record.heard.clear();
        record.written = rows.iter().zip(1..).map(|(row, at)| written(at, *row)).collect();
    };
    check_is(&[], |record| {
        rows(record, &[Some((0, 1, false)), Some((0, 1, true)), Some((1, 2, true)), Some((1, 2, false)), None])
    });
    // A life is given twice, falls, or is taken from a machine.
    check_is(&["I1"], |record| rows(record, &[Some((0, 2, true)), Some((1, 2, true))]));
    check_is(&["I1"], |record| rows(record, &[Some((0, 2, true)), Some((0, 1, true))]));
    check_is(&["I1"], |record| rows(record, &[Some((0, 1, false)), Some((1, 2, true))]));
    check_is(&["I1"], |record| rows(record, &[Some((0, 1, true)), Some((1, 2, false))]));
    // Whoever was removed comes back, or a server that was taken for dead writes.
    check_is(&["I3"], |record| rows(record, &[Some((0, 1, true)), None, Some((0, 1, true))]));
    check_is(&["I3"], |record| {
        rows(record, &[Some((0, 1, true)), Some((0, 1, false))]);
        record.written[0].row.as_mut().unwrap().term = 2;
    });
}

#[test]
fn a_life_that_is_on_record_late_or_as_anothers_is_seen() {
    let of = |record: &mut Record, at: At, node: usize| {
        record.written.truncate(2);
        record.written.push(written(at, Some((node, 2, true))));
    };
    check_is(&[], |record| of(record, 2100, 0));
    check_is(&["I1"], |record| of(record, 2101, 0));
    check_is(&["I1"], |record| of(record, 2000, 1));
    // The first is on record once it runs.
    check_is(&[], |record| record.written[0].at = 800 * MS);
}

#[test]
fn who_takes_what_was_given_up_is_told_from_who_takes_what_was_lost() {
    let mut record = good();
    record.written = vec![
        written(1, Some((0, 1, true))),
        written(2, Some((1, 2, true))),
        written(3, Some((1, 2, true))),
        written(4, Some((0, 3, true))),
    ];
    record.written[2].row.as_mut().unwrap().is_given_up = true;
    assert_eq!(record.taken(), Taken { moved: 1, lost: 1 });
}

#[test]
fn two_lives_at_once_are_seen() {
    check_is(&["I2"], |record| {
        record.asked.remove(1);
        record.heard.extend(voice(1, &[0, 1], 2100, 2200));
    });
    // Also where the third begins while the first goes on and the second is over.
    check_is(&["I2"], |record| {
        record.asked.remove(1);
        record.heard.extend(voice(3, &[0, 1, 2, 3], 4500, 4600));
        record.heard.extend(voice(1, &[0, 1], 4500, 4700));
    });
}

#[test]
fn one_life_on_two_nodes_is_seen() {
    check_is(&["I1"], |record| {
        let words = voice(1, &[0, 1], 500, 600);
        record.heard.extend(words.into_iter().map(|word| Heard { node: 1, ..word }));
    });
}

#[test]
fn a_machine_that_runs_without_a_lease_is_seen() {
    // As long as it is not on record that it runs, others could have it.
    let late = |record: &mut Record| {
        record.leases[0].truncate(1);
        record.heard.extend(voice(2, &[0, 1, 2], 4100, 7100));
    };
    check_is(&["I2"], |record| {
        late(record);
        record.written.truncate(3);
    });
    // What cannot be claimed may.
    check_is(&[], late);
    check_is(&[], |record| {
        record.leases[0].clear();
        record.heard.retain(|word| !word.can_be_claimed);
    });
    // A lease that is given later says nothing of the time before.
    check_is(&["I2"], |record| {
        record.leases[0] = vec![Leased { at: 9000 * MS, until: 20_000 * MS }];
        record.written.truncate(3);
        record.heard.extend(voice(2, &[0, 1, 2], 4100, 8000));
    });
}

#[test]
fn a_machine_that_runs_after_its_pause_or_end_is_seen() {
    check_is(&["I3"], |record| record.heard.extend(voice(1, &[0, 1], 1200, 1300)));
    check_is(&["I3"], |record| {
        record.asked.push(asked(Ask::Kill, 3000, 3100, Answer::Done));
        record.found[0].1 = Found::Gone;
    });
}

#[test]
fn an_older_state_is_seen() {
    // The memory of the template.
    check_is(&["I4"], |record| {
        for word in record.heard.iter_mut().filter(|word| word.epoch == 2) {
            word.life = vec![0, 2, 2];
        }
    });
    // That of the pause before.
    check_is(&["I4"], |record| {
        record.asked.extend([asked(Ask::Pause, 4000, 4100, Answer::Done), asked(Ask::Resume, 4200, 4300, Answer::Done)]);
        record.heard.extend(voice(3, &[0, 1, 3], 4300, 4400));
    });
    // A pause that was not answered promises nothing.
    check_is(&[], |record| {
        record
            .asked
            .extend([asked(Ask::Pause, 4000, 4100, Answer::Unknown("cut".into())), asked(Ask::Resume, 4200, 4300, Answer::Done)]);
        record.heard.extend(voice(3, &[0, 1, 3], 4300, 4400));
    });
}

#[test]
fn a_deadline_that_passes_is_seen() {
    let brief = |record: &mut Record, until: At| {
        record.asked = vec![asked(Ask::Create { timeout_s: 2 }, 0, 1000, Answer::Done)];
        record.heard = voice(1, &[0, 1], 100, until);
        record.found.clear();
    };
    check_is(&[], |record| brief(record, 3500));
    check_is(&["I5"], |record| brief(record, 3000 + 8500));
    // A server that is not there ends nothing, and the next one does.
    let killed = |to: At| Trouble { fault: Fault::KillServer(0), from: 2000 * MS, to: to * MS };
    check_is(&[], |record| {
        brief(record, 11_500);
        record.troubles = vec![killed(11_000)];
    });
    check_is(&["I5"], |record| {
        brief(record, 20_000);
        record.troubles = vec![killed(11_000)];
    });
    // A database that is not there is no excuse.
    check_is(&["I5"], |record| {
        brief(record, 11_500);
        record.troubles = vec![Trouble { fault: Fault::KillPostgres, ..killed(20_000) }];
    });
    check_is(&["I5"], |record| {
        brief(record, 3000);
        record.heard.extend(voice(2, &[0, 1, 2], 3500, 3600));
    });
}

#[test]
fn what_ends_with_the_database_is_seen() {
    let anchor = |record: &mut Record, words: Vec<Heard>| {
        record.anchors = vec!["a".into()];
        record.heard.extend(words.into_iter().map(|word| Heard { sandbox: "a".into(), can_be_claimed: false, ..word }));
    };
    check_is(&[], |record| anchor(record, voice(1, &[0, 1], 0, 30_000)));
    check_is(&["I10"], |record| anchor(record, Vec::new()));
    check_is(&["I10"], |record| anchor(record, [voice(1, &[0, 1], 0, 1000), voice(2, &[0, 2], 2000, 30_000)].concat()));
    check_is(&["I10"], |record| anchor(record, [voice(1, &[0, 1], 0, 1000), voice(1, &[0, 1], 12_000, 30_000)].concat()));
    // It ended, and others did not.
    check_is(&["I10"], |record| {
        anchor(record, voice(1, &[0, 1], 0, 4000));
        let others = voice(1, &[0, 1], 4000, 30_000).into_iter().map(|word| Heard { sandbox: "b".into(), ..word });
        record.heard.extend(others);
    });
    let cut = |record: &mut Record, fault| {
        record.severed = vec![Severed { at: 3000 * MS, node: 0, sandbox: "s".into(), why: "it ended".into() }];
        record.troubles = vec![Trouble { fault, from: 1000 * MS, to: 2000 * MS }];
    };
    check_is(&["I10"], |record| cut(record, Fault::KillPostgres));
    check_is(&["I10"], |record| cut(record, Fault::KillServer(1)));
    check_is(&["I10"], |record| cut(record, Fault::Cut { from: Party::Node(0), to: Party::Postgres, both_ways: true }));
    check_is(&[], |record| cut(record, Fault::KillServer(0)));
    // The machine may be another node's than the one that was asked.
    check_is(&[], |record| {
        cut(record, Fault::KillServer(1));
        for word in &mut record.heard {
            word.node = 1;
        }
        record.leases.insert(0, Vec::new());
        for row in record.written.iter_mut().filter_map(|written| written.row.as_mut()) {
            row.node = 1;
        }
    });
    check_is(&[], |record| cut(record, Fault::Cut { from: Party::Clients, to: Party::Node(0), both_ways: false }));
}

#[test]
fn what_is_not_as_it_was_answered_is_seen() {
    check_is(&["I4"], |record| record.found[0].1 = Found::Paused);
    check_is(&["I4"], |record| record.found[0].1 = Found::Gone);
    check_is(&["I4"], |record| record.asked.push(asked(Ask::Look, 3000, 3100, Answer::Refused(404, String::new()))));
    // Nobody was told what came of it.
    check_is(&[], |record| {
        record.asked.push(asked(Ask::Kill, 3000, 3100, Answer::Unknown(String::new())));
        record.found[0].1 = Found::Gone;
    });
    check_is(&["I4"], |record| {
        record.asked.push(asked(Ask::Kill, 3900, 4100, Answer::Done));
    });
    // What was gone is done something with.
    check_is(&["I4"], |record| {
        let then = [asked(Ask::Kill, 3900, 4100, Answer::Done), asked(Ask::Resume, 4200, 4300, Answer::Done)];
        record.asked.extend(then);
    });
    // One that was to move and has not may be paused, and one that has runs.
    check_is(&[], |record| {
        record.asked.push(asked(Ask::Move { to: 1 }, 3900, 4100, Answer::Unknown(String::new())));
        record.found[0].1 = Found::Paused;
    });
    check_is(&["I4"], |record| {
        record.asked.push(asked(Ask::Move { to: 1 }, 3900, 4100, Answer::Done));
        record.found[0].1 = Found::Paused;
    });
}

#[test]
fn an_answer_of_an_earlier_life_is_seen_whoever_gave_it() {
    let of = |epoch: u64, from: At, to: At| Asked { epoch: Some(epoch), ..asked(Ask::Look, from, to, Answer::Done) };
    // Whoever asked before the newer answer was there may get the older one after it.
    check_is(&[], |record| record.asked.extend([of(1, 2150, 2600), of(2, 2200, 2300), of(2, 2400, 2500)]));
    check_is(&["I7"], |record| {
        record.asked.extend([of(2, 2200, 2300), Asked { ask: Ask::Listen, node: 1, ..of(1, 2400, 2500) }])
    });
    check_is(&["I7"], |record| record.asked.extend([of(2, 2200, 2300), of(1, 2210, 2900), of(2, 2400, 2410), of(1, 2420, 2430)]));
}
