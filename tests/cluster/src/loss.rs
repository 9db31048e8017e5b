//! A node is lost and comes back: the same each time, because each of its steps waits for the one before.
//!
//! ```text
//!   two sandboxes are paused on node 1, whose files are on others too: they were there
//!     ─► one of them is resumed; as soon as its guest is heard, and before it is recorded that it runs, the server is stopped (SIGSTOP), or killed
//!     ─► both are asked for on both other nodes at the same time, once the lease and the grace are over
//!     ─► the server goes on, or another one comes, and is asked for what it has not any more
//! ```
//!
//! Guests and claims wait meanwhile (`Places::slow`), so that what could go wrong between two steps does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::{
    checker,
    client::Client,
    faults::Subjects,
    history,
    record::{Ask, Record, Trouble, now},
    run::{Begun, Outcome, TIMES, at_rest, begin, blocking, end, goes_on},
    schedule::Fault,
    voice,
};

/// How the server of the lost node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goes {
    /// It stands still, and goes on when others have had what was its own.
    Stopped,
    /// It is killed, and another one comes then.
    Killed,
}

/// The one that is lost.
const LOST: usize = 1;

/// The others.
const OTHERS: [usize; 2] = [0, 2];

/// By then what is waited for has come about, on a host that is busy too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// After the grace, until it is sure that it is over for each node that asks.
const SURELY: Duration = Duration::from_secs(1);

/// Plays it, and judges what was written down.
pub(crate) async fn play(subjects: Arc<Subjects>, goes: Goes) -> anyhow::Result<Outcome> {
    let begun = begin(&subjects).await?;
    let mut sandboxes = Vec::new();
    for other in OTHERS {
        sandboxes.push(begun.rests(other, LOST).await?);
    }
    is_slow(&subjects, LOST, true)?;
    // Nobody else could have one that was never paused: it runs on.
    let runs_on = begun.clients[LOST].create_on(LOST).await?;
    let lost = stop_while_it_resumes(&subjects, &begun, (&sandboxes[0], goes)).await?;
    is_lost(&subjects).await?;
    if goes == Goes::Killed {
        let places = subjects.server(LOST).places().clone();
        let (listed, other) = (voice::is_stopped(&places, &sandboxes[0])?, voice::is_stopped(&places, &runs_on)?);
        ensure!(listed == Some(true), "what could be claimed runs without a lease and without a server: {listed:?}");
        ensure!(other == Some(false), "what nobody else could have does not run on: {other:?}");
    }
    for id in &sandboxes {
        wanted_by_both(&subjects, &begun, id).await?;
    }
    is_slow(&subjects, LOST, false)?;
    if goes == Goes::Killed {
        let starting = Arc::clone(&subjects);
        blocking(move || starting.server(LOST).start(&starting.world)).await?;
    } else {
        subjects.server(LOST).signal(Signal::SIGCONT)?;
    }
    // It is told of things that are not its own any more, before it may know that.
    for id in &sandboxes {
        begun.clients[LOST].ask(id, Ask::Pause).await;
    }
    let troubles = vec![Trouble { to: now(), ..lost }];
    let (mut failures, mut found) = (Vec::new(), Vec::new());
    let mut note = |ended: anyhow::Result<()>| failures.extend(ended.err().map(|error| format!("{error:#}")));
    // Each of them can be had, wherever it is, and whatever became of it on the way.
    for id in &sandboxes {
        note(runs(&begun.clients[LOST], id).await);
    }
    note(goes_on(&begun.sink, sandboxes.iter()).await);
    note(at_rest(&begun, &mut found).await);
    let Outcome { record, mut violations } = end(&subjects, begun, failures).await?;
    let record = Record { troubles, found, ..record };
    violations.extend(checker::check(&record));
    Ok(Outcome { record, violations })
}

fn is_slow(subjects: &Subjects, node: usize, is_so: bool) -> anyhow::Result<()> {
    let path = subjects.server(node).places().slow();
    if is_so {
        fs_err::write(path, "")?
    } else {
        fs_err::remove_file(path)?
    }
    Ok(())
}

/// Stops the server when it has begun a life of which it has not recorded yet that it runs.
async fn stop_while_it_resumes(subjects: &Arc<Subjects>, begun: &Begun, (id, goes): (&str, Goes)) -> anyhow::Result<Trouble> {
    let since = now();
    let (client, resumed) = (begun.clients[LOST].clone(), id.to_owned());
    // It is answered by another server than the one that was asked, or not at all.
    tokio::spawn(async move { client.ask(&resumed, Ask::Resume).await });
    let waiting = Instant::now();
    while begun.sink.last(|word| word.sandbox == id && word.at > since).is_none() {
        ensure!(waiting.elapsed() < PATIENCE, "{id} is not heard");
        tokio::time::sleep(LOOK).await;
    }
    let from = now();
    let fault = match goes {
        Goes::Stopped => {
            subjects.server(LOST).signal(Signal::SIGSTOP)?;
            Fault::StopServer(LOST)
        }
        Goes::Killed => {
            subjects.server(LOST).kill()?;
            Fault::KillServer(LOST)
        }
    };
    Ok(Trouble { fault, from, to: from })
}

/// Has both others claim one after both have found that they can. Who does not get it passes on, or says who has it; what came of it is in the log
/// of the clients.
async fn wanted_by_both(subjects: &Subjects, begun: &Begun, id: &str) -> anyhow::Result<()> {
    for other in OTHERS {
        is_slow(subjects, other, true)?;
    }
    let asking = futures::future::join_all(OTHERS.map(|other| begun.clients[other].ask(id, Ask::Resume)));
    let looked = OTHERS.map(|other| subjects.server(other).places().looked());
    let meeting = async {
        let waiting = Instant::now();
        while !looked.iter().all(|path| path.exists()) && waiting.elapsed() < PATIENCE {
            tokio::time::sleep(LOOK).await;
        }
        for (other, looked) in OTHERS.iter().zip(&looked) {
            is_slow(subjects, *other, false)?;
            ensure!(looked.exists(), "node {other} does not find that {id} can be claimed");
            fs_err::remove_file(looked)?;
        }
        anyhow::Ok(())
    };
    tokio::join!(asking, meeting).1
}

/// Waits until others may have what the node had.
async fn is_lost(subjects: &Arc<Subjects>) -> anyhow::Result<()> {
    let waiting = Instant::now();
    loop {
        let looking = Arc::clone(subjects);
        let over = blocking(move || history::lease_over(&looking.postgres(), &looking.database, LOST)).await?;
        if over.is_some_and(|over| over > TIMES.grace + SURELY) {
            return Ok(());
        }
        ensure!(waiting.elapsed() < PATIENCE, "the lease of a node whose server stands still does not end");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Has one run, if it does not.
async fn runs(client: &Client, id: &str) -> anyhow::Result<()> {
    let waiting = Instant::now();
    loop {
        match client.find(id).await {
            Ok(crate::record::Found::Running) => return Ok(()),
            Ok(_) => drop(client.ask(id, Ask::Resume).await),
            Err(error) if waiting.elapsed() > PATIENCE => return Err(error.context("a sandbox of a lost node is not found")),
            Err(_) => {}
        }
        ensure!(waiting.elapsed() < PATIENCE, "{id} does not run anywhere");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
