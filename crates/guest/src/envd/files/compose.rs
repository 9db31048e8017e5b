//! `/files/compose`: several files become one, without their bytes leaving the kernel.

use std::{
    io,
    os::unix::fs::fchown,
    path::{Path, PathBuf},
};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

use super::{blocking, no_space};
use crate::envd::{error::ApiError, paths, state::EnvdState, trouble::Trouble, users::User};

/// Files of one composition.
const MAX_SOURCES: usize = 10_000;

#[derive(Debug, Deserialize)]
struct ComposeRequest {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

#[derive(Debug, Serialize)]
struct Composed {
    path: String,
    name: String,
    r#type: &'static str,
}

/// `POST /files/compose`: the destination appears whole or not at all, then the sources go.
pub(in crate::envd) async fn compose(State(state): State<EnvdState>, headers: HeaderMap, body: Bytes) -> Response {
    let answer = async {
        let request: ComposeRequest =
            serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("invalid request body: {error}")))?;
        if request.source_paths.is_empty() || request.source_paths.len() > MAX_SOURCES {
            return Err(ApiError::bad_request(format!("source_paths must hold 1 to {MAX_SOURCES} paths")));
        }
        if request.destination.is_empty() {
            return Err(ApiError::bad_request("destination is required"));
        }
        let settings = state.settings();
        let user = super::user_of(&headers, request.username.as_deref(), &settings)?;
        let resolve = |path: &str| paths::resolve(path, &user, settings.default_workdir.as_deref());
        let destination = resolve(&request.destination)?;
        let sources = request.source_paths.iter().map(|path| resolve(path)).collect::<Result<Vec<_>, _>>()?;
        blocking(move || concatenate(&sources, &destination, &user)).await.map(|composed| Json(composed).into_response())
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}

fn concatenate(sources: &[PathBuf], destination: &Path, user: &User) -> Result<Composed, ApiError> {
    for source in sources {
        if source == destination {
            let text = format!("source path \"{}\" cannot be the same as destination", source.display());
            return Err(ApiError::bad_request(text));
        }
        match fs_err::metadata(source) {
            Err(error) => {
                let trouble = Trouble::of(&error);
                let absent = || trouble.api(format!("source file not found: {}", source.display()));
                return Err(if trouble == Trouble::Absent { absent() } else { trouble.api(format!("cannot compose: {error}")) });
            }
            Ok(found) if !found.is_file() => {
                return Err(ApiError::bad_request(format!("source path is not a regular file: {}", source.display())));
            }
            Ok(_) => {}
        }
    }
    let failed = |error: io::Error| match Trouble::of(&error) {
        Trouble::Full => no_space(None),
        trouble => trouble.api(format!("cannot compose: {error}")),
    };
    if let Some(parent) = destination.parent() {
        paths::make_dirs(parent, user).map_err(failed)?;
    }
    let number = getrandom::u64().map_err(|error| ApiError::internal(format!("cannot draw random bytes: {error}")))?;
    let mut name = destination.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".e2b-compose.{number:016x}.tmp"));
    let temporary = Temporary(destination.with_file_name(name));
    let write = || -> io::Result<()> {
        let mut options = fs_err::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o666).open(&temporary.0)?.into_file();
        fchown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        for source in sources {
            // Between two files the standard library uses copy_file_range.
            io::copy(&mut fs_err::File::open(source)?.into_file(), &mut file)?;
        }
        fs_err::rename(&temporary.0, destination)
    };
    write().map_err(failed)?;
    for source in sources {
        // A source may have been named twice.
        if let Err(error) = fs_err::remove_file(source) {
            tracing::debug!(%error, "cannot remove a composed source");
        }
    }
    Ok(Composed {
        path: destination.to_string_lossy().into_owned(),
        name: destination.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        r#type: "file",
    })
}

/// Gone when it was not renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove a temporary file");
        }
    }
}
