//! What has to hold of all that was written down, whatever went wrong. Pure: a record in, violations out.
//!
//! Times of machines are of when they ran and not of when they were heard; what was lost on the way makes a check weaker, and never wrong.

use std::collections::BTreeMap;

use crate::{
    record::{Answer, Ask, Asked, At, Found, Heard, Record, Row, seconds},
    schedule::{Fault, Party},
};

/// What is late by less is the host's business: a server that is there ends what has to end.
const SLACK: At = seconds(8);

/// The warden has to be scheduled within this, and another node waits for longer.
const FENCE: At = seconds(3);

/// A voice speaks every 50 ms.
const SILENCE: At = seconds(10);

/// For how long something that was wrong excuses the end of a stream: that of a peer that is gone is seen late.
const EXCUSE: At = seconds(60);

/// Something that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Of the design's list.
    pub(crate) invariant: &'static str,
    pub(crate) text: String,
}

/// All that did not hold.
pub(crate) fn check(record: &Record) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut tell = |invariant, text| found.push(Violation { invariant, text });
    lives_only_rise(record, &mut tell);
    lives_are_on_record_before_they_begin(record, &mut tell);
    lives_do_not_overlap(record, &mut tell);
    nobody_runs_without_a_lease(record, &mut tell);
    what_was_paused_or_killed_is_silent(record, &mut tell);
    what_is_resumed_is_the_last_state(record, &mut tell);
    deadlines_hold(record, &mut tell);
    nothing_ends_with_the_database(record, &mut tell);
    what_was_answered_is_so(record, &mut tell);
    no_answer_is_of_an_earlier_life(record, &mut tell);
    found
}

type Tell<'a> = dyn FnMut(&'static str, String) + 'a;

/// The lives of one sandbox, by epoch: what was heard of each, in the order of times.
fn lives(record: &Record) -> BTreeMap<&str, BTreeMap<u64, Vec<&Heard>>> {
    let mut lives: BTreeMap<&str, BTreeMap<u64, Vec<&Heard>>> = BTreeMap::new();
    for word in &record.heard {
        lives.entry(&word.sandbox).or_default().entry(word.epoch).or_default().push(word);
    }
    lives
}

/// The rows of one sandbox, in the order in which they were kept; none where it was removed.
fn rows(record: &Record) -> BTreeMap<&str, Vec<Option<&Row>>> {
    let mut rows: BTreeMap<&str, Vec<Option<&Row>>> = BTreeMap::new();
    for written in &record.written {
        rows.entry(&written.sandbox).or_default().push(written.row.as_ref());
    }
    rows
}

/// I1 and I3, by the database: the number of a life never falls, each is one node's, another node's is the next one of what was paused, and what
/// was removed does not come back. Who writes in an earlier term, or of an earlier life, would be seen by that.
fn lives_only_rise(record: &Record, tell: &mut Tell<'_>) {
    for (sandbox, rows) in rows(record) {
        for pair in rows.windows(2) {
            let (before, after) = match (pair[0], pair[1]) {
                (Some(before), Some(after)) => (before, after),
                (Some(_), None) => continue,
                (None, _) => {
                    tell("I3", format!("{sandbox} was removed, and is on record again: {:?}", pair[1]));
                    continue;
                }
            };
            let is_taken = before.node != after.node;
            if after.epoch < before.epoch || is_taken && after.epoch <= before.epoch {
                tell("I1", format!("{sandbox} was on record as {before:?}, and then as {after:?}"));
            }
            if is_taken && !(before.is_paused && after.is_paused) {
                tell("I1", format!("{sandbox} became another node's while it ran: {before:?}, and then {after:?}"));
            }
            if !is_taken && after.term < before.term {
                tell("I3", format!("{sandbox} was written in a term that is over: {before:?}, and then {after:?}"));
            }
        }
    }
}

/// I1, by what was heard: a life that could be another's is on record before anything of it runs, as of the node that it runs on.
fn lives_are_on_record_before_they_begin(record: &Record, tell: &mut Tell<'_>) {
    for (sandbox, lives) in lives(record) {
        for (epoch, words) in lives {
            let first = words[0];
            let claimed = record.written.iter().find_map(|written| {
                let row = written.row.as_ref().filter(|row| written.sandbox == sandbox && row.epoch == epoch)?;
                Some((written.at, row))
            });
            match claimed {
                Some((_, row)) if row.node != first.node => tell(
                    "I1",
                    format!("epoch {epoch} of {sandbox} ran on node {}, and is node {}'s by the record", first.node, row.node),
                ),
                // The first one is on record once it runs: nobody else knows of it.
                _ if !first.can_be_claimed => {}
                None => tell("I1", format!("epoch {epoch} of {sandbox} ran on node {}, and was never on record", first.node)),
                Some((at, _)) if at > first.at => {
                    let late = (at - first.at) / 1_000_000;
                    tell("I1", format!("epoch {epoch} of {sandbox} was on record {late} ms after it had begun"));
                }
                Some(_) => {}
            }
        }
    }
}

/// I2, and of I1 that a life is one node's.
fn lives_do_not_overlap(record: &Record, tell: &mut Tell<'_>) {
    for (sandbox, lives) in lives(record) {
        let mut before: Option<(u64, At)> = None;
        for (epoch, words) in lives {
            let (first, last) = (words[0].at, words[words.len() - 1].at);
            if let Some(other) = words.iter().find(|word| word.node != words[0].node) {
                tell("I1", format!("epoch {epoch} of {sandbox} ran on nodes {} and {}", words[0].node, other.node));
            }
            if let Some((earlier, until)) = before.filter(|(_, until)| *until >= first) {
                tell(
                    "I2",
                    format!(
                        "epoch {earlier} of {sandbox} ran for {} ms after epoch {epoch} had begun",
                        (until - first) / 1_000_000
                    ),
                );
            }
            before = Some((epoch, before.map_or(last, |(_, until)| until.max(last))));
        }
    }
}

/// Whether others could have a sandbox at the time of a word, by the record: it was paused there, in that life.
fn could_be_claimed(record: &Record, word: &Heard) -> bool {
    let written = record.written.iter().filter(|written| written.sandbox == word.sandbox);
    let last = written.take_while(|written| written.at <= word.at).last();
    last.and_then(|written| written.row.as_ref()).is_some_and(|row| row.epoch == word.epoch && row.is_paused)
}

/// I2, as far as one server can show it: what could be claimed stands still once nobody may count on the lease.
fn nobody_runs_without_a_lease(record: &Record, tell: &mut Tell<'_>) {
    let mut told = BTreeMap::new();
    for word in record.heard.iter().filter(|word| could_be_claimed(record, word)) {
        let leases = record.leases.get(word.node).map(Vec::as_slice).unwrap_or_default();
        let until = leases.iter().filter(|lease| lease.at <= word.at).map(|lease| lease.until).max().unwrap_or(0);
        if word.at > until + FENCE {
            let late = told.entry((&word.sandbox, word.epoch)).or_insert(0);
            *late = (*late).max(word.at - until);
        }
    }
    for ((sandbox, epoch), late) in told {
        tell("I2", format!("epoch {epoch} of {sandbox} could be claimed and ran {} ms after its node's lease", late / 1_000_000));
    }
}

/// Nobody runs once a client was told that it is paused or gone.
fn what_was_paused_or_killed_is_silent(record: &Record, tell: &mut Tell<'_>) {
    let lives = lives(record);
    for asked in record.asked.iter().filter(|asked| asked.answer == Answer::Done && matches!(asked.ask, Ask::Pause | Ask::Kill)) {
        let Some(lives) = lives.get(asked.sandbox.as_str()) else { continue };
        for (epoch, words) in lives.iter().filter(|(_, words)| words[0].at < asked.from) {
            if let Some(word) = words.iter().find(|word| word.at > asked.to) {
                let late = (word.at - asked.to) / 1_000_000;
                tell("I3", format!("epoch {epoch} of {} ran {late} ms after {:?} was answered", asked.sandbox, asked.ask));
            }
        }
    }
}

/// I4: memory goes on where it was when the pause was answered.
fn what_is_resumed_is_the_last_state(record: &Record, tell: &mut Tell<'_>) {
    let lives = lives(record);
    for (sandbox, lives) in lives {
        let pauses: Vec<&Asked> = record
            .asked
            .iter()
            .filter(|asked| asked.sandbox == sandbox && asked.ask == Ask::Pause && asked.answer == Answer::Done)
            .collect();
        for pause in pauses {
            let before = lives.values().rfind(|words| words[0].at < pause.from);
            let after = lives.values().find(|words| words[0].at > pause.to);
            if let (Some(before), Some(after)) = (before, after)
                && !after[0].life.starts_with(&before[0].life)
            {
                let (was, is) = (&before[0].life, &after[0].life);
                tell("I4", format!("{sandbox} remembered {was:?} when it was paused, and {is:?} when it was resumed"));
            }
        }
    }
}

/// Whether a server could do nothing at some time between two.
fn was_away(record: &Record, node: usize, from: At, to: At) -> bool {
    record.troubles.iter().any(|trouble| {
        let is_its = matches!(trouble.fault, Fault::KillServer(of) | Fault::StopServer(of) if of == node);
        is_its && trouble.from <= to && from <= trouble.to
    })
}

/// I5: what has a deadline ends at it, with the database or without, and does not come back.
fn deadlines_hold(record: &Record, tell: &mut Tell<'_>) {
    let lives = lives(record);
    for asked in record.asked.iter().filter(|asked| asked.answer == Answer::Done) {
        let Ask::Create { timeout_s } = asked.ask else { continue };
        // What is to live for long is paused and resumed, with other deadlines.
        if timeout_s >= crate::client::LONG_S {
            continue;
        }
        let deadline = asked.to + seconds(timeout_s);
        let Some(lives) = lives.get(asked.sandbox.as_str()) else { continue };
        let late = lives
            .values()
            .flatten()
            .find(|word| word.at > deadline + SLACK && !was_away(record, word.node, word.at - SLACK, word.at));
        if let Some(word) = late {
            tell("I5", format!("{} ran {} ms after its deadline", asked.sandbox, (word.at - deadline) / 1_000_000));
        }
        if lives.len() > 1 {
            tell("I5", format!("{} lived again: {:?}", asked.sandbox, lives.keys().collect::<Vec<_>>()));
        }
    }
}

/// I10: what cannot be claimed runs on, and so do streams, whatever the database does.
fn nothing_ends_with_the_database(record: &Record, tell: &mut Tell<'_>) {
    let lives = lives(record);
    let end = record.heard.last().map_or(0, |word| word.at);
    for anchor in &record.anchors {
        let Some(lives) = lives.get(anchor.as_str()) else {
            tell("I10", format!("{anchor} was never heard"));
            continue;
        };
        if lives.len() > 1 {
            tell("I10", format!("{anchor} did not run on: it had the epochs {:?}", lives.keys().collect::<Vec<_>>()));
        }
        let words: Vec<At> = lives.values().flatten().map(|word| word.at).chain([end]).collect();
        if let Some(gap) = words.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().filter(|gap| *gap > SILENCE) {
            tell("I10", format!("{anchor} stood still for {} ms", gap / 1_000_000));
        }
    }
    for cut in &record.severed {
        let excuses = record.troubles.iter().any(|trouble| {
            // From the client to the node that was asked, and from there to the one that has the machine.
            let homes = lives.get(cut.sandbox.as_str()).into_iter().flat_map(BTreeMap::values).map(|words| words[0].node);
            let way: Vec<Party> = [Party::Clients, Party::Node(cut.node)].into_iter().chain(homes.map(Party::Node)).collect();
            let is_between = match trouble.fault {
                Fault::KillServer(node) | Fault::StopServer(node) => way.contains(&Party::Node(node)),
                Fault::Cut { from, to, .. } => way.contains(&from) && way.contains(&to),
                _ => false,
            };
            is_between && trouble.from <= cut.at && cut.at <= trouble.to + EXCUSE
        });
        if !excuses {
            tell("I10", format!("a stream through node {} was cut: {}", cut.node, cut.why));
        }
    }
}

/// What a client was told is so, and what it was told last is what there is.
fn what_was_answered_is_so(record: &Record, tell: &mut Tell<'_>) {
    let mut believed: BTreeMap<&str, Vec<Found>> = BTreeMap::new();
    for asked in record.asked.iter().filter(|asked| !asked.sandbox.is_empty()) {
        let states = believed.entry(&asked.sandbox).or_default();
        let becomes = match asked.ask {
            Ask::Create { timeout_s } if timeout_s < crate::client::LONG_S => {
                // Its deadline is a matter of its own.
                states.extend([Found::Running, Found::Gone]);
                continue;
            }
            Ask::Create { .. } | Ask::Resume => Some(Found::Running),
            Ask::Pause => Some(Found::Paused),
            Ask::Kill => Some(Found::Gone),
            // One that does not come there is paused at most.
            Ask::Move { .. } if asked.answer != Answer::Done => Some(Found::Paused),
            Ask::Move { .. } | Ask::Look | Ask::Listen => None,
        };
        if asked.answer == Answer::Done && states[..] == [Found::Gone] && !matches!(asked.ask, Ask::Kill | Ask::Listen) {
            tell("I4", format!("{:?} of {} was done, which was gone", asked.ask, asked.sandbox));
        }
        match (&asked.answer, becomes) {
            (Answer::Done, Some(state)) => *states = vec![state],
            (Answer::Unknown(_), Some(state)) => states.push(state),
            (Answer::Refused(404, why), _) if !states.contains(&Found::Gone) => {
                tell("I4", format!("{} is not found, and was {states:?}: {why}", asked.sandbox));
                states.push(Found::Gone);
            }
            _ => {}
        }
    }
    for (sandbox, found) in &record.found {
        if let Some(states) = believed.get(sandbox.as_str()).filter(|states| !states.contains(found)) {
            tell("I4", format!("{sandbox} is {found:?}, and clients were told that it is {states:?}"));
        }
    }
}

/// I7: whoever asks after an answer was there is answered by that life or a later one, whichever nodes were asked.
fn no_answer_is_of_an_earlier_life(record: &Record, tell: &mut Tell<'_>) {
    let mut answers: BTreeMap<&str, Vec<(&Asked, u64)>> = BTreeMap::new();
    for (asked, epoch) in record.asked.iter().filter_map(|asked| Some((asked, asked.epoch?))) {
        answers.entry(&asked.sandbox).or_default().push((asked, epoch));
    }
    for (sandbox, answers) in answers {
        let mut there = answers.clone();
        there.sort_by_key(|(asked, _)| asked.to);
        let (mut there, mut newest): (_, Option<(&Asked, u64)>) = (there.into_iter().peekable(), None);
        // In the order in which they were asked for.
        for (asked, epoch) in answers {
            while let Some(before) = there.next_if(|(before, _)| before.to < asked.from) {
                newest = newest.filter(|(_, known)| *known >= before.1).or(Some(before));
            }
            if let Some((before, known)) = newest.filter(|(_, known)| *known > epoch) {
                let (ask, node) = (asked.ask, asked.node);
                tell(
                    "I7",
                    format!(
                        "{ask:?} of {sandbox} through node {node} was answered by epoch {epoch}, and {:?} through node {} before by {known}",
                        before.ask, before.node
                    ),
                );
            }
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
