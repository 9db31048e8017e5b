//! `firkin sandbox cp`: a file into a sandbox or out of it, piece by piece, whatever its size.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use firkin_wire::DEFAULT_USER;
use fs_err::tokio as fs;
use futures::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::{
    api::Api,
    args::watching::CopyArgs,
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    settings::Settings,
};

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Here(PathBuf),
    /// Sandbox and path.
    There(String, String),
}

impl End {
    /// `ID:PATH`, else a file here. What has a `/` before the colon is one, as with scp.
    fn read(text: &str) -> Self {
        match text.split_once(':') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() && !id.contains('/') => Self::There(id.into(), path.into()),
            _ => Self::Here(text.into()),
        }
    }
}

/// Runs the command.
pub(super) async fn run(api: &Api, settings: &Settings, args: &CopyArgs) -> anyhow::Result<ExitStatus> {
    let user = args.user.as_deref().unwrap_or(DEFAULT_USER);
    let bytes = match (End::read(&args.from), End::read(&args.to)) {
        (End::Here(from), End::There(id, to)) => send(api, &from, (&id, &to, user)).await,
        (End::There(id, from), End::Here(to)) => fetch(api, (&id, &from, user), &to).await,
        (End::Here(_), End::Here(_)) => Err(anyhow!("neither `{}` nor `{}` is in a sandbox", args.from, args.to))
            .hint("write `ID:PATH` for a file of a sandbox"),
        (End::There(..), End::There(..)) => Err(anyhow!("both files are in sandboxes")).hint("copy through a file here"),
    }
    .with_context(|| format!("`{}` was not copied", args.from))?;
    let done = serde_json::json!({"from": args.from, "to": args.to, "bytes": bytes});
    output::result(settings.format, &done, || {
        let mut table = Table::new(&["from", "to", ">bytes"]);
        table.row([args.from.clone(), args.to.clone(), bytes.to_string()]);
        table
    })?;
    Ok(ExitStatus::Success)
}

async fn send(api: &Api, from: &Path, (id, to, user): (&str, &str, &str)) -> anyhow::Result<u64> {
    let file = fs::File::open(from).await?;
    if !file.metadata().await?.is_file() {
        return Err(anyhow!("`{}` is no file", from.display()))
            .hint(format!("a directory goes by `tar -c . | firkin sandbox exec {id} -- tar -x -C {to}`"));
    }
    // `dir/` is the file of the same name in there.
    let name = from.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let to = if to.ends_with('/') { format!("{to}{name}") } else { to.to_owned() };
    let sandbox = api.sandbox(id).await?;
    // What goes, and not what the file had at its beginning: it may grow or shrink meanwhile.
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let pieces = ReaderStream::new(file).map_err(anyhow::Error::from).map_ok(move |piece| {
        counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Frame::data(piece)
    });
    let body = StreamBody::new(pieces).boxed_unsync();
    api.send_file((id, sandbox.envd_access_token.as_deref()), (&to, user), body).await?;
    Ok(sent.load(Ordering::Relaxed))
}

/// The file here that `to` means. What is there has to be a file, since it is replaced: by a device's name the device would go.
fn place(to: &Path, from: &str) -> anyhow::Result<PathBuf> {
    let name = from.rsplit('/').next().filter(|name| !name.is_empty());
    let to = if to.is_dir() { to.join(name.context("the path names no file")?) } else { to.to_owned() };
    match fs_err::canonicalize(&to) {
        Ok(file) if file.is_file() => Ok(file),
        Ok(_) => Err(anyhow!("`{}` is there, and is no file", to.display()))
            .hint(format!("`firkin sandbox exec ID -- cat {from}` writes to the standard output")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(to),
        Err(error) => Err(error.into()),
    }
}

/// Written under another name, and renamed when it is whole.
async fn fetch(api: &Api, (id, from, user): (&str, &str, &str), to: &Path) -> anyhow::Result<u64> {
    let to = place(to, from)?;
    let sandbox = api.sandbox(id).await?;
    let mut body = api.fetch_file((id, sandbox.envd_access_token.as_deref()), (from, user)).await?;
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (file, part) = tempfile::NamedTempFile::new_in(dir).context("cannot write there")?.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let piece: Bytes = frame.context("the file broke off")?.into_data().unwrap_or_default();
        file.write_all(&piece).await.with_context(|| format!("cannot write to `{}`", part.display()))?;
        bytes += piece.len() as u64;
    }
    file.sync_all().await.with_context(|| format!("cannot write to `{}`", part.display()))?;
    part.persist(&to).with_context(|| format!("cannot make `{}`", to.display()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (file, link) = (dir.join("file"), dir.join("link"));
        assert_eq!(place(&dir, "/a/b").unwrap(), dir.join("b"));
        assert_eq!(place(&file, "/a/b").unwrap(), file);
        fs_err::write(&file, "").unwrap();
        fs_err::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(place(&link, "/a/b").unwrap(), file, "the link stays");
        assert!(place(Path::new("/dev/null"), "/a/b").is_err());
        assert!(place(&dir, "/a/").is_err());
    }

    #[test]
    fn an_end_is_here_or_in_a_sandbox() {
        let there = |id: &str, path: &str| End::There(id.into(), path.into());
        for (text, expected) in [
            ("i1:/a", there("i1", "/a")),
            ("i1:a:b", there("i1", "a:b")),
            ("./i1:a", End::Here("./i1:a".into())),
            ("file", End::Here("file".into())),
            (":a", End::Here(":a".into())),
            ("i1:", End::Here("i1:".into())),
        ] {
            assert_eq!(End::read(text), expected, "{text}");
        }
    }
}
