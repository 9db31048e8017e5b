//! `export` and `import` of templates, snapshots and sandboxes: one file, piece by piece, whatever its size.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use fs_err::tokio as fs;
use futures::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::{
    api::Api,
    args::moving::{ExportArgs, ImportArgs, ImportNamedArgs, SnapshotCommand},
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    progress::Progress,
    serverfile,
    settings::Settings,
};

/// Bytes that are read of a file at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Template,
    Snapshot,
    Sandbox,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Snapshot => "snapshot",
            Self::Sandbox => "sandbox",
        }
    }
}

/// Runs a `firkin snapshot` command.
pub(crate) async fn run(settings: &Settings, command: SnapshotCommand) -> anyhow::Result<ExitStatus> {
    match command {
        SnapshotCommand::Export(args) => export(settings, Kind::Snapshot, args).await,
        SnapshotCommand::Import(args) => import_named(settings, Kind::Snapshot, args).await,
    }
}

/// `firkin ... export`
pub(crate) async fn export(settings: &Settings, kind: Kind, args: ExportArgs) -> anyhow::Result<ExitStatus> {
    let api = Api::new(serverfile::find(settings)?);
    let to = args.output.unwrap_or_else(|| named(&args.id));
    if to.exists() && !to.is_file() {
        return Err(anyhow!("`{}` is there, and is no file", to.display())).hint("name a file with `--output`");
    }
    let progress = Progress::on_stderr(settings.live_progress);
    let step = progress.step(&format!("exporting {} {}", kind.word(), args.id));
    let at = |bytes: u64| step.at(&format!("{} MiB written", bytes >> 20));
    let bytes = fetch(&api, (kind, &args.id), &to, at).await;
    let bytes = bytes.with_context(|| format!("{} `{}` was not exported", kind.word(), args.id))?;
    step.done(&format!("exported to {}", to.display()));
    let done = json!({"kind": kind.word(), "id": args.id, "file": to, "bytes": bytes});
    output::result(settings.format, &done, || {
        let mut table = Table::new(&["file", ">bytes"]);
        table.row([to.display().to_string(), bytes.to_string()]);
        table
    })?;
    Ok(ExitStatus::Success)
}

/// `firkin template import` and `firkin snapshot import`
pub(crate) async fn import_named(settings: &Settings, kind: Kind, args: ImportNamedArgs) -> anyhow::Result<ExitStatus> {
    import(settings, kind, (args.import, args.name)).await
}

/// `firkin ... import`
pub(crate) async fn import(
    settings: &Settings,
    kind: Kind,
    (ImportArgs { file }, name): (ImportArgs, Option<String>),
) -> anyhow::Result<ExitStatus> {
    let api = Api::new(serverfile::find(settings)?);
    let progress = Progress::on_stderr(settings.live_progress);
    let step = progress.step(&format!("importing {}", file.display()));
    let came = send(&api, (kind, name), &file, |sent, of| step.at(&format!("{} of {} MiB sent", sent >> 20, of >> 20))).await;
    let came = came.with_context(|| format!("`{}` was not imported", file.display()))?;
    step.done(if came["was_here"] == Value::Bool(true) { "all of it was here already" } else { "imported" });
    output::result(settings.format, &came, || {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names =
            came["names"].as_array().map_or_else(String::new, |names| names.iter().map(text).collect::<Vec<_>>().join(" "));
        let mut table = Table::new(&["kind", "id", "names"]);
        table.row([text(&came["kind"]), text(&came["id"]), names]);
        table
    })?;
    Ok(ExitStatus::Success)
}

/// The file of what is called so: a team's name has a `/`, and a tag a `:`.
fn named(id: &str) -> PathBuf {
    let name = id.rsplit('/').next().unwrap_or(id).replace(':', "-");
    PathBuf::from(format!("{name}.firkin"))
}

/// Written under another name, and renamed when it is whole.
async fn fetch(api: &Api, what: (Kind, &str), to: &Path, at: impl Fn(u64)) -> anyhow::Result<u64> {
    let mut body = api.export(what.0.word(), what.1).await?;
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (file, part) = tempfile::NamedTempFile::new_in(dir).context("cannot write there")?.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let piece = frame.context("the archive broke off; the server's log says why")?.into_data().unwrap_or_default();
        file.write_all(&piece).await.with_context(|| format!("cannot write to `{}`", part.display()))?;
        bytes += piece.len() as u64;
        at(bytes);
    }
    file.sync_all().await.with_context(|| format!("cannot write to `{}`", part.display()))?;
    part.persist(to).with_context(|| format!("cannot make `{}`", to.display()))?;
    Ok(bytes)
}

async fn send(api: &Api, (kind, name): (Kind, Option<String>), from: &Path, at: impl Fn(u64, u64)) -> anyhow::Result<Value> {
    let file = fs::File::open(from).await?;
    let of = file.metadata().await?.len();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let pieces = ReaderStream::with_capacity(file, CHUNK_BYTES).map_err(anyhow::Error::from).map_ok(move |piece| {
        counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Frame::data(piece)
    });
    let importing = api.import(kind.word(), name, StreamBody::new(pieces).boxed_unsync());
    tokio::pin!(importing);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            came = &mut importing => return came,
            _ = looks.tick() => at(sent.load(Ordering::Relaxed), of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_as_what_is_in_it() {
        for (id, expected) in [("base", "base.firkin"), ("team/base:v1", "base-v1.firkin"), ("i1", "i1.firkin")] {
            assert_eq!(named(id), Path::new(expected));
        }
    }
}
