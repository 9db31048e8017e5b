//! A build through the API that does all that a build can: files are copied, a command takes long enough
//! that what came of it is kept, and two tags of a template change hands, whereupon a build that has lost all of its tags must go.

use std::{collections::BTreeSet, time::Duration};

use firkin_runtime::{
    build::{BuildPlan, BuildRequest, RequestedBuild, Source, StepSpec},
    runtime::Runtime,
    standard::BuildTemplate,
    store::BuildState,
};
use serde::{Deserialize, Serialize};

use crate::{
    bench::{DEADLINE, Told},
    envd::LONG,
};

/// All of them without their tags.
const FAMILY: &str = "app";

/// What is built anew, and whose name each becomes.
const NAMES: [&str; 2] = ["app:v1", "app:v2"];

/// Another name of what the first stands for. It is not built, and stays.
const KEPT: &str = "app:v0";

/// What all of them stand on.
const BASE: &str = "base";

/// The least that a build may ask for.
const MEMORY_MIB: u32 = 128;

/// A look at a build reads the database, which the build needs too.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What clients know of the names, and of the build that is to take them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToldBuild {
    /// The builds that the names stood for before.
    before: BTreeSet<String>,
    /// The one that the other name stands for.
    kept: String,
    /// The build, and how far it has come.
    known: Option<(String, BuildState)>,
}

/// A template with two builds, one for each name. What they stand on is made once for a host: a memory of the least size that a build may ask
/// for takes longer to digest than everything else here.
pub(crate) async fn prepare(runtime: &Runtime) -> ToldBuild {
    let base = BuildTemplate { ready: None, memory_mib: MEMORY_MIB, ..BuildTemplate::base() };
    Box::pin(runtime.ensure_template(base, &|_| {})).await.unwrap();
    for name in NAMES {
        let place = request(runtime, name, &[]).await;
        start(runtime, &place, plan(Vec::new())).await;
        assert_eq!(ended(runtime, &place).await, BuildState::Ready);
    }
    runtime.assign_tags(NAMES[0], vec!["v0".into()]).await.unwrap();
    ToldBuild { before: builds_of_names(runtime).await, kept: build_of(runtime, KEPT).await, known: None }
}

/// Builds both names as one, and tells how far that has come.
pub(crate) async fn carry_out(runtime: &Runtime, told: &mut Told, tell: &mut impl FnMut(&Told)) {
    let place = request(runtime, NAMES[0], &["v2"]).await;
    let mut tell_state = |state| {
        told.build.as_mut().unwrap().known = Some((place.build_id.clone(), state));
        tell(told);
    };
    tell_state(BuildState::Waiting);
    let mut upload = runtime.receive_files(&digest()).unwrap();
    upload.write(&archive()).await.unwrap();
    upload.finish().await.unwrap();
    let copy = StepSpec { files_hash: Some(digest()), ..step("COPY", &["file", "/app"]) };
    let steps = vec![copy, step("RUN", &[LONG]), step("RUN", &["short"])];
    let plan = BuildPlan { start: Some("serve".into()), ready: Some("is-up".into()), ..plan(steps) };
    start(runtime, &place, plan).await;
    tell_state(BuildState::Building);
    assert_eq!(ended(runtime, &place).await, BuildState::Ready, "{:?}", runtime.builds().await);
    tell_state(BuildState::Ready);
}

/// What the next server knows of builds is what clients were told, and the names can be built again.
pub(crate) async fn check(runtime: &Runtime, told: &ToldBuild) {
    let builds = runtime.builds().await.unwrap();
    for build in &builds {
        match build.state {
            BuildState::Waiting | BuildState::Ready => {}
            BuildState::Error => {
                let reason = build.reason.clone().unwrap_or_else(|| panic!("{build:?} has no reason"));
                assert!(reason.message.starts_with("the server stopped before the build ended"), "{reason:?}");
            }
            BuildState::Building => panic!("nobody is at work on {build:?}"),
        }
    }
    let mut expected = &told.before;
    let new;
    if let Some((id, known)) = &told.known {
        let found = builds.iter().find(|build| build.id == *id).expect("clients know of it");
        let (started, ready) = (found.state != BuildState::Waiting, found.state == BuildState::Ready);
        assert!(started || *known == BuildState::Waiting, "{known:?} became {found:?}");
        assert!(ready || *known != BuildState::Ready, "{known:?} became {found:?}");
        if ready {
            new = BTreeSet::from([id.clone()]);
            expected = &new;
        }
    }
    assert_eq!(&builds_of_names(runtime).await, expected, "of {told:?} after {builds:?}");
    assert_eq!(build_of(runtime, KEPT).await, told.kept);
    let family: Vec<_> =
        runtime.templates().await.unwrap().into_iter().filter(|template| template.name.as_deref() == Some(FAMILY)).collect();
    assert_eq!(family.len(), 1, "one template for all tags: {family:?}");
    let stood_for: BTreeSet<&String> = family[0].tags.iter().map(|tag| &tag.build_id).collect();
    assert_eq!(stood_for, expected.iter().chain([&told.kept]).collect(), "and nothing that no tag stands for");

    let again = request(runtime, NAMES[0], &["v2"]).await;
    start(runtime, &again, plan(vec![step("RUN", &["short"])])).await;
    assert_eq!(ended(runtime, &again).await, BuildState::Ready, "{:?}", runtime.builds().await);
    assert_eq!(builds_of_names(runtime).await, BTreeSet::from([again.build_id]));
}

/// Everything but what all of them stand on is deleted.
pub(crate) async fn end(runtime: &Runtime) {
    for template in runtime.templates().await.unwrap() {
        if template.aliases != [BASE] {
            runtime.delete_template(&template.id).await.unwrap();
        }
    }
    let base = runtime.template(BASE).await.unwrap().unwrap().id;
    let left = runtime.builds().await.unwrap();
    assert!(left.iter().all(|build| build.template_id == base), "{left:?}");
}

async fn builds_of_names(runtime: &Runtime) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in NAMES {
        found.insert(build_of(runtime, name).await);
    }
    found
}

async fn build_of(runtime: &Runtime, name: &str) -> String {
    let found = runtime.template(name).await.unwrap();
    found.unwrap_or_else(|| panic!("`{name}` stands for nothing")).build_id
}

async fn request(runtime: &Runtime, name: &str, tags: &[&str]) -> RequestedBuild {
    let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    let request = BuildRequest {
        name: Some(name.into()),
        tags,
        cpus: Some(1),
        memory_mib: Some(MEMORY_MIB.into()),
        ..BuildRequest::default()
    };
    runtime.request_build(&request).await.unwrap()
}

async fn start(runtime: &Runtime, place: &RequestedBuild, plan: BuildPlan) {
    runtime.start_build(&place.template_id, &place.build_id, plan).await.unwrap();
}

async fn ended(runtime: &Runtime, place: &RequestedBuild) -> BuildState {
    let begun = std::time::Instant::now();
    loop {
        let state = runtime.build(&place.template_id, &place.build_id).await.unwrap().state;
        if state != BuildState::Building {
            return state;
        }
        assert!(begun.elapsed() < DEADLINE, "the build does not end");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

fn step(kind: &str, args: &[&str]) -> StepSpec {
    StepSpec { kind: kind.into(), args: args.iter().map(|&arg| arg.to_owned()).collect(), ..StepSpec::default() }
}

fn plan(steps: Vec<StepSpec>) -> BuildPlan {
    BuildPlan {
        source: Source::Template(BASE.into()),
        force: false,
        steps,
        start: None,
        ready: None,
        nested_virtualization: false,
        engine: None,
    }
}

/// What the client calls its files.
fn digest() -> String {
    "a".repeat(64)
}

fn archive() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "file", &b"text"[..]).unwrap();
    archive.into_inner().unwrap()
}
