//! Builds as tests ask for them.

use std::time::Duration;

use firkin_runtime::{
    build::{BuildInfo, BuildPlan, BuildRequest, RequestedBuild, Source, StepSpec},
    images::ImageRequest,
    runtime::Runtime,
    store::BuildState,
};

const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a build.
const LOOK: Duration = Duration::from_millis(5);

pub(crate) async fn request(server: &Runtime, name: &str, memory_mib: i64) -> RequestedBuild {
    let request =
        BuildRequest { name: Some(name.to_owned()), cpus: Some(1), memory_mib: Some(memory_mib), ..BuildRequest::default() };
    server.request_build(&request).await.unwrap()
}

pub(crate) fn plan(source: Source, commands: &[&str]) -> BuildPlan {
    let step = |command: &&str| StepSpec { kind: "RUN".into(), args: vec![(*command).to_owned()], ..StepSpec::default() };
    BuildPlan {
        source,
        force: false,
        steps: commands.iter().map(step).collect(),
        start: None,
        ready: None,
        nested_virtualization: false,
        engine: None,
    }
}

pub(crate) fn own_image() -> Source {
    Source::Image(ImageRequest { reference: "e2bdev/base".into(), login: None })
}

pub(crate) async fn start(server: &Runtime, place: &RequestedBuild, plan: BuildPlan) {
    server.start_build(&place.template_id, &place.build_id, plan).await.unwrap();
}

pub(crate) async fn ended(server: &Runtime, place: &RequestedBuild) -> BuildInfo {
    let ended = async {
        // As clients do: who asks without a pause takes a processor from the build.
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            let info = server.build(&place.template_id, &place.build_id).await.unwrap();
            if info.state != BuildState::Building {
                return info;
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the build ends")
}

pub(crate) async fn built(server: &Runtime, name: &str, source: Source, memory_mib: i64) -> RequestedBuild {
    let place = request(server, name, memory_mib).await;
    start(server, &place, plan(source, &[])).await;
    let info = ended(server, &place).await;
    assert_eq!(info.state, BuildState::Ready, "{info:?}");
    place
}

/// The builds that a test has asked for: every server has that of `base`.
pub(crate) async fn own_builds(server: &Runtime) -> Vec<BuildInfo> {
    let base = server.template("base").await.unwrap().unwrap().id;
    server.builds().await.unwrap().into_iter().filter(|build| build.template_id != base).collect()
}
