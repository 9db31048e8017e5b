//! A model of how nodes have sandboxes (terms, leases, claims, and a warden that stops machines), in random runs with everything going wrong.
//! Whatever happens, two machines never run one sandbox, lives only rise, and each begins with the last state that was durable. What is left out of
//! the rules on purpose has to be found, or the model would say nothing.

#![expect(clippy::unwrap_used, reason = "a test's own parts fail by panics")]

use firkin_postgres::LeaseTimes;
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

mod rules;
mod world;

use rules::Rules;
use world::{Fault, HORIZON, NODES, Schedule, Seen, World};

/// Runs of the model with all of its rules; twenty times as many are tried before a mutant is taken for one that is not found.
const RUNS: u32 = 400;

fn schedule() -> impl Strategy<Value = Schedule> {
    let fault = prop_oneof![
        3 => Just(Fault::Deaf), 3 => Just(Fault::Mute), 2 => Just(Fault::Server), 1 => Just(Fault::Host), 2 => Just(Fault::Stall)
    ];
    let faults = vec((0..HORIZON, 0..NODES, 1_000..400_000_u64, fault), 0..12);
    (faults, vec(-10..=10_i64, NODES), any::<u64>()).prop_map(|(faults, rates, seed)| Schedule { faults, rates, seed })
}

/// The same runs each time, which say the same of a mutant each time.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// What is found of rules that are not all there.
fn found(what: impl Fn(&mut Rules)) -> String {
    let mut rules = Rules::all(LeaseTimes::default());
    what(&mut rules);
    let found = runner(RUNS * 20).run(&schedule(), |schedule| {
        World::new(schedule, rules).run().map(drop).map_err(|violation| TestCaseError::fail(format!("{violation:?}")))
    });
    match found {
        Err(TestError::Fail(reason, _)) => reason.to_string(),
        other => panic!("it is not found: {other:?}"),
    }
}

#[test]
fn no_two_machines_run_one_sandbox_and_none_begins_with_an_old_state() {
    // Other runs each time, and more of them where `PROPTEST_CASES` says so; what fails is printed, and kept beside this file.
    let mut runner =
        TestRunner::new(Config { cases: RUNS.max(Config::default().cases), source_file: Some(file!()), ..Config::default() });
    let rules = Rules::all(LeaseTimes::default());
    let holds = runner.run(&schedule(), |schedule| {
        World::new(schedule, rules).run().map(drop).map_err(|violation| TestCaseError::fail(format!("{violation:?}")))
    });
    if let Err(error) = holds {
        panic!("{error}");
    }
}

#[test]
fn the_runs_are_about_what_they_should_be() {
    let mut all = Seen::default();
    let rules = Rules::all(LeaseTimes::default());
    let seen = std::cell::RefCell::new(Vec::new());
    let run = runner(200).run(&schedule(), |schedule| {
        seen.borrow_mut().push(World::new(schedule, rules).run().unwrap());
        Ok(())
    });
    run.unwrap();
    for Seen { claims, given_up, stops, continued, fenced, gaps } in seen.into_inner() {
        all.claims += claims;
        all.given_up += given_up;
        all.stops += stops;
        all.continued += continued;
        all.fenced += fenced;
        all.gaps += gaps;
    }
    let each = [all.claims, all.given_up, all.stops, all.continued, all.fenced, all.gaps];
    assert!(each.iter().all(|count| *count >= 10), "{all:?}");
}

#[test]
fn without_a_warden_two_machines_run_one_sandbox() {
    assert!(found(|rules| rules.has_warden = false).contains("Overlap"));
}

#[test]
fn where_lives_are_not_compared_it_is_found() {
    found(|rules| rules.compares_epochs = false);
}

#[test]
fn who_begins_before_it_is_recorded_is_found() {
    found(|rules| rules.records_after = true);
}

#[test]
fn who_goes_on_after_an_answer_that_was_lost_is_found() {
    assert!(found(|rules| rules.forgets_gaps = true).contains("Overlap"));
}
