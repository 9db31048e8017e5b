//! What a host has had once comes back as an archive, from a host with another root image.

use std::collections::BTreeSet;

use bytes::Bytes;
use firkin_runtime::{
    moving::{ImportAs, Leaving},
    runtime::Runtime,
};
use futures::{TryStreamExt as _, stream};

use crate::bench::{Bench, Told};

/// Exports a snapshot, deletes it, and has all of it gone.
pub(crate) async fn leave(bench: &Bench, runtime: &Runtime, snapshot: String) -> Vec<u8> {
    let export = runtime.export(Leaving::Snapshot(snapshot.clone())).await.unwrap();
    let chunks: Vec<Bytes> = export.stream().try_collect().await.unwrap();
    let before = bench.artifacts();
    runtime.delete_template(&snapshot).await.unwrap();
    while bench.artifacts() == before {
        tokio::task::yield_now().await;
    }
    bench.renew_image();
    chunks.concat()
}

/// Takes it in again.
pub(crate) async fn come(runtime: &Runtime, archive: Vec<u8>, told: &mut Told) {
    runtime.import(stream::iter([Ok(Bytes::from(archive))]), ImportAs::default()).await.unwrap();
    let snapshots = runtime.snapshots().await.unwrap().into_iter().map(|snapshot| snapshot.snapshot_id);
    told.templates.extend(snapshots.collect::<BTreeSet<_>>());
}
