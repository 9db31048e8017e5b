//! How long a create takes with few templates on record and with many: its look-up is one query, whatever else there is.
//!
//! ```text
//! cargo run --release -p firkin-runtime --example many_templates -- [TEMPLATES] [SAMPLES]
//! ```
//!
//! On the fake engine, so that the figures are those of the runtime alone.

#![expect(clippy::print_stdout, reason = "a program to run by hand")]

use std::{error::Error, sync::Arc, time::Instant};

use firkin_runtime::{
    build::{BuildPlan, BuildRequest, Source},
    capacity::HostCapacity,
    config::RuntimeConfig,
    memory_pressure::HostMemory,
    owner::OnExit,
    runtime::Runtime,
    sandbox::CreateSandbox,
    standard::BuildTemplate,
    store::BuildState,
};

mod stand_in;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Before there are many.
const FEW: usize = 5;

#[tokio::main]
async fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let many = numbers.next().transpose()?.unwrap_or(5_000);
    let samples = numbers.next().transpose()?.unwrap_or(200);
    run(many, samples).await
}

async fn run(many: usize, samples: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (engine, network) = stand_in::guests().await?;
    let capacity = HostCapacity { cpus: 64, memory_mib: 1 << 20, disk_mib: 1 << 30 };
    let defaults = RuntimeConfig::new(dir.path().join("state"), capacity, network, stand_in::guest_system(dir.path())?);
    let config = RuntimeConfig { disk_floor_mib: Some(0), memory_probe: Arc::new(HostMemory::PLENTY), ..defaults };
    let runtime = Runtime::open(config, Arc::new(engine)).await?;
    let measured = async {
        let build = BuildTemplate { ready: None, ..BuildTemplate::base() };
        Box::pin(runtime.build_template(build, &|_| ())).await?;
        let mut there = 1;
        for count in [FEW, many] {
            while there < count {
                template(&runtime, &format!("template-{there}")).await?;
                there += 1;
            }
            let (median, p99) = creates(&runtime, samples).await?;
            println!("{count} templates: create p50 {median:.2} ms, p99 {p99:.2} ms, {samples} samples");
        }
        Ok(())
    };
    let measured = measured.await;
    runtime.shutdown(OnExit::Kill).await;
    measured
}

/// A template that is `base` by another name.
async fn template(runtime: &Runtime, name: &str) -> Result<()> {
    let request = BuildRequest { name: Some(name.to_owned()), cpus: Some(1), memory_mib: Some(512), ..BuildRequest::default() };
    let place = runtime.request_build(&request).await?;
    let plan = BuildPlan {
        source: Source::Template("base".to_owned()),
        force: false,
        steps: Vec::new(),
        start: None,
        ready: None,
        nested_virtualization: false,
        engine: None,
    };
    runtime.start_build(&place.template_id, &place.build_id, plan).await?;
    loop {
        let build = runtime.build(&place.template_id, &place.build_id).await?;
        match (build.state, build.reason) {
            (BuildState::Ready, _) => return Ok(()),
            (BuildState::Error, reason) => return Err(format!("{reason:?}").into()),
            (BuildState::Waiting | BuildState::Building, _) => tokio::task::yield_now().await,
        }
    }
}

/// Median and 99th percentile of creates by name, one after the other, milliseconds.
async fn creates(runtime: &Runtime, samples: usize) -> Result<(f64, f64)> {
    let mut took = Vec::with_capacity(samples);
    for sample in 0..samples {
        let begun = Instant::now();
        let sandbox = runtime.create(CreateSandbox::from_template(format!("template-{}", 1 + sample % (FEW - 1)))).await?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        runtime.kill(&sandbox.id).await?;
    }
    took.sort_by(f64::total_cmp);
    let at = |share: usize| took.get((took.len() * share / 100).min(took.len().saturating_sub(1))).copied().unwrap_or_default();
    Ok((at(50), at(99)))
}

#[test]
fn it_runs() {
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    tokio.block_on(run(FEW + 1, 2)).expect("the example runs");
}
