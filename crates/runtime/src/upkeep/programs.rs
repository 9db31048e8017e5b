//! Programs that engines keep because what they made can be read by no others: those are removed that nothing is left of.
//!
//! A machine runs what made the state that it was restored from, which is there for as long as it runs: so whoever is named by no
//! artifact runs nothing either. Only where there is a program to spare are artifacts read.

use std::{collections::HashSet, io};

use crate::{artifact::ArtifactStore, ground::blocking::blocking, shared::Shared};

/// Has each engine forget the programs that no artifact names. Where one cannot be read, none is forgotten.
pub(super) async fn forget_unnamed(shared: &Shared) -> io::Result<()> {
    let (engines, artifacts) = (shared.launcher.engines.clone(), shared.artifacts.clone());
    blocking(move || {
        for engine in engines.all() {
            // Before artifacts are looked at: what is made meanwhile is made by what is no spare, or by what is named already.
            let spare = engine.spare_programs()?;
            if spare.is_empty() {
                continue;
            }
            let named = named(&artifacts)?;
            for program in spare.iter().filter(|program| !named.contains(*program)) {
                engine.forget_program(program)?;
                tracing::info!(engine = engine.fingerprint().engine, program, "removed a program that nothing is left of");
            }
        }
        Ok(())
    })
    .await
}

fn named(artifacts: &ArtifactStore) -> io::Result<HashSet<String>> {
    let manifests = artifacts.ids()?.into_iter().map(|id| artifacts.load(&id).map_err(io::Error::other));
    manifests.filter_map(|artifact| artifact.map(|artifact| artifact.manifest.engine.program).transpose()).collect()
}
