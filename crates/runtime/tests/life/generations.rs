//! A sandbox resumes its last durable state or none.

use std::{path::Path, time::Duration};

use firkin_runtime::{
    owner::ResumeError,
    sandbox::{SandboxId, SandboxState},
    stale_state::StaleState,
};
use proptest::prelude::*;

use crate::bench::{CASES, Host, base};

const MINUTE: Duration = Duration::from_secs(60);

/// Rewrites one field of a manifest, as only root can and only a bug or a copy put back would.
fn forge(artifact: &Path, from: &str, to: &str) {
    let path = artifact.join("manifest.json");
    let text = fs_err::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    // Whole or not at all: the server reads manifests in the background, and half of one is damage, not a forgery.
    let forged = path.with_extension("forged");
    fs_err::write(&forged, text.replacen(from, to, 1)).unwrap();
    fs_err::rename(&forged, &path).unwrap();
}

fn pause_artifact(host: &Host) -> String {
    let held = |id: &String| {
        fs_err::read_to_string(host.state_dir().join("artifacts").join(id).join("manifest.json"))
            .unwrap()
            .contains(r#""kind": "pause""#)
    };
    host.artifacts().into_iter().find(held).unwrap()
}

#[test]
fn an_artifact_of_another_epoch_or_sandbox_is_refused_by_name_and_harms_nothing() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        server.pause(&id).await.unwrap();
        let artifact = pause_artifact(&host);
        let dir = host.state_dir().join("artifacts").join(&artifact);
        for (true_field, forged, found, of) in [
            (r#""epoch": 2"#.to_owned(), r#""epoch": 1"#.to_owned(), 1, id.to_string()),
            (r#""epoch": 2"#.to_owned(), r#""epoch": 3"#.to_owned(), 3, id.to_string()),
            (format!(r#""logical_id": "{id}""#), r#""logical_id": "iother""#.to_owned(), 2, "iother".to_owned()),
        ] {
            forge(&dir, &true_field, &forged);
            let restores = host.engine.restores();
            let refused = server.connect(&id, MINUTE).await.unwrap_err();
            let expected = StaleState { id: id.clone(), artifact: artifact.parse().unwrap(), of, found, expected: 2 };
            assert!(matches!(&refused, ResumeError::Stale(stale) if *stale == expected), "{refused:?}");
            assert_eq!(host.engine.restores(), restores, "nothing was launched");
            assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Paused);
            forge(&dir, &forged, &true_field);
        }
        assert!(server.connect(&id, MINUTE).await.unwrap().resumed);
        assert_eq!(host.memory(&id).word, "kept");
    });
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Work,
    Pause,
    Wake,
    Snapshot,
    /// The server is killed and started again; machines live on.
    Crash,
    /// The host loses power: no machine lives on.
    PowerCut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Work), 3 => Just(Step::Pause), 3 => Just(Step::Wake),
        1 => Just(Step::Snapshot), 2 => Just(Step::Crash), 1 => Just(Step::PowerCut),
    ]
}

/// Does one step that needs no end of the server. `live` is what the guest remembers while it runs.
async fn take(step: Step, host: &Host, server: &firkin_runtime::runtime::Runtime, id: &SandboxId, count: usize) {
    let running = server.sandbox(id).unwrap().state == SandboxState::Running;
    match step {
        Step::Work if running => host.remember(id, &count.to_string()),
        Step::Pause if running => server.pause(id).await.unwrap(),
        Step::Wake if !running => drop(server.connect(id, MINUTE * 60).await.unwrap()),
        Step::Snapshot => drop(server.snapshot(id, None).await.unwrap()),
        Step::Work | Step::Pause | Step::Wake | Step::Crash | Step::PowerCut => {}
    }
}

proptest! {
    // Each case starts several servers, whose databases sync to a real disk.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_sandbox_remembers_the_last_that_was_durable(steps in proptest::collection::vec(step(), 1..14)) {
        let host = Host::new();
        let id = host.crash_after(async |server| server.create(base()).await.unwrap().id);
        // What it must remember, and whether it runs.
        let (mut word, mut running, mut gone, mut count) = (String::new(), true, false, 0);
        for session in steps.split_inclusive(|step| matches!(step, Step::Crash | Step::PowerCut)) {
            host.crash_after(async |server| {
                assert_eq!(server.sandbox(&id).is_err(), gone);
                if gone {
                    return;
                }
                if running {
                    assert_eq!(host.memory(&id).word, word);
                    assert!(server.stats(&id).await.unwrap().is_some(), "its machine runs");
                }
                for step in session {
                    count += 1;
                    take(*step, &host, &server, &id, count).await;
                    match step {
                        Step::Work if running => word = count.to_string(),
                        Step::Pause => running = false,
                        Step::Wake => {
                            running = true;
                            assert_eq!(host.memory(&id).word, word);
                        }
                        Step::Work | Step::Snapshot | Step::Crash | Step::PowerCut => {}
                    }
                }
            });
            if let Some(Step::PowerCut) = session.last() {
                for dir in host.engine.live_dirs() {
                    host.engine.crash(&dir);
                }
                // What ran and was not paused is lost with its machine, never replaced by an older state.
                gone |= running;
            }
        }
    }
}
