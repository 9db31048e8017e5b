//! A server with several engines: each sandbox and each template is of the one that made it, whichever is the first.

use std::time::Duration;

use firkin_engine::{Acceleration, fake::Keeping};
use firkin_runtime::{
    build::{BuildPlan, Source},
    runtime::Runtime,
    sandbox::{CreateSandbox, Memory, SandboxState},
    state_dir::OpenError,
    store::BuildState,
};

use crate::{
    bench::{Host, base},
    building::{ended, own_image, plan, request, start},
};

const MINUTE: Duration = Duration::from_secs(60);

/// A build of one's own on an engine.
async fn build_on(server: &Runtime, name: &str, engine: Option<Acceleration>, source: Source) -> BuildState {
    let place = request(server, name, 512).await;
    start(server, &place, BuildPlan { engine, ..plan(source, &[]) }).await;
    ended(server, &place).await.state
}

#[test]
fn a_sandbox_lives_on_the_engine_of_its_template() {
    let host = Host::new();
    let other = host.another_engine(Keeping::AllInState, Acceleration::Gvisor);
    host.serve_on(&[&host.engine, &other], async |server| {
        assert_eq!(server.accelerations(), [Acceleration::None, Acceleration::Gvisor]);
        assert_eq!(build_on(server, "theirs", Some(Acceleration::Gvisor), own_image()).await, BuildState::Ready);
        assert_eq!(build_on(server, "more", None, Source::Template("theirs".into())).await, BuildState::Ready);
        let (here, there) = (host.engine.live(), other.live());
        let ours = server.create(base()).await.unwrap().id;
        assert_eq!((host.engine.live(), other.live()), (here + 1, there));
        let theirs = server.create(CreateSandbox::from_template("more")).await.unwrap().id;
        assert_eq!((host.engine.live(), other.live()), (here + 1, there + 1));

        host.remember(&ours, "ours");
        host.remember(&theirs, "theirs");
        // Each as its own engine can.
        assert!(server.pause_with(&theirs, Memory::Dropped).await.is_err());
        for id in [&ours, &theirs] {
            server.pause(id).await.unwrap();
        }
        assert_eq!((host.engine.live(), other.live()), (here, there));
        for (id, word) in [(&ours, "ours"), (&theirs, "theirs")] {
            server.connect(id, MINUTE).await.unwrap();
            assert_eq!(host.memory(id).word, word);
        }
        assert_eq!((host.engine.live(), other.live()), (here + 1, there + 1));
        server.pause_with(&ours, Memory::Dropped).await.unwrap();
    });
}

#[test]
fn a_server_whose_first_engine_is_another_goes_on_with_what_there_is() {
    let host = Host::new();
    let other = host.another_engine(Keeping::AllInState, Acceleration::Gvisor);
    let mut paused = None;
    host.serve_on(&[&host.engine], async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        server.pause(&id).await.unwrap();
        paused = Some(id);
    });
    let paused = paused.unwrap();
    host.serve_on(&[&other], async |server| {
        let refused = server.connect(&paused, MINUTE).await.unwrap_err();
        assert!(firkin_causes::chain(&refused).contains("it has engine"), "{refused:?}");
        assert_eq!(server.sandbox(&paused).unwrap().state, SandboxState::Paused, "it is kept for who can bring it back");
        let theirs = server.create(base()).await.unwrap().id;
        assert_eq!(other.live(), 1);
        server.kill(&theirs).await.unwrap();
    });
    host.serve_on(&[&other, &host.engine], async |server| {
        server.connect(&paused, MINUTE).await.unwrap();
        assert_eq!(host.memory(&paused).word, "kept");
        assert_eq!((host.engine.live(), other.live()), (1, 0));
    });
}

#[test]
fn a_server_without_the_engine_of_a_running_sandbox_does_not_begin() {
    let host = Host::new();
    let other = host.another_engine(Keeping::AllInState, Acceleration::Gvisor);
    let id = host.crash_after(async |server| server.create(base()).await.unwrap().id);
    host.remember(&id, "alive");
    let refused = host.refused_on(&other);
    assert!(matches!(&refused, OpenError::Engine { sandbox, .. } if *sandbox == id.to_string()), "{refused:?}");
    assert_eq!(host.engine.live(), 1, "its machine was not touched");
    host.serve_on(&[&other, &host.engine], async |server| {
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
        assert_eq!(host.memory(&id).word, "alive");
    });
}

#[test]
fn an_engine_that_is_not_there_is_named() {
    let host = Host::new();
    host.serve(async |server| {
        let place = request(server, "theirs", 512).await;
        start(server, &place, BuildPlan { engine: Some(Acceleration::Kvm), ..plan(own_image(), &[]) }).await;
        let said = format!("{:?}", ended(server, &place).await);
        assert!(said.contains("has no engine `kvm`") && said.contains("--engine kvm"), "{said}");
    });
}
