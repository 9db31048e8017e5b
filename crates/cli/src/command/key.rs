//! `firkin key ...`: the key that paused sandboxes are encrypted with, through the server, or without one.

use firkin_engine::qcow2::Qcow2;
use firkin_runtime::{
    artifact::RotateError,
    encryption::{RotateStoppedError, rotate_key},
    state_dir::OpenError,
};

use super::quickstart::running_server;
use crate::{
    failure::{ExitStatus, advised},
    output::{self, Table},
    settings::Settings,
};

/// `firkin key rotate`
pub(crate) async fn rotate(settings: &Settings) -> anyhow::Result<ExitStatus> {
    let rotation = match running_server(settings).await? {
        Some((api, _)) => api.rotate_key().await?,
        None => {
            let rotated = rotate_key(&settings.state_dir, &Qcow2, settings.encryption.key_file.clone()).await;
            serde_json::to_value(rotated.map_err(refused)?)?
        }
    };
    output::result(settings.format, &rotation, || table(&rotation))?;
    let unreadable = rotation["unreadable"].as_array().map_or(0, Vec::len);
    if unreadable > 0 {
        output::note(&format!("{unreadable} data keys are under keys that are not known here, and stay as they are"));
    }
    if rotation["key"] == rotation["former"] {
        output::note(
            "hint: the key is the same: put a new one above it in the key file (`openssl rand -hex 32`), and rotate again",
        );
    }
    Ok(if unreadable == 0 { ExitStatus::Success } else { ExitStatus::Failure })
}

fn refused(error: RotateStoppedError) -> anyhow::Error {
    let hint = match &error {
        RotateStoppedError::Open(OpenError::Directory { .. }) => Some("`--state-dir` names the directory that a server used"),
        RotateStoppedError::Rotate(RotateError::NoKey) => Some("`--encryption-key-file` names a key file that is elsewhere"),
        RotateStoppedError::Open(_) | RotateStoppedError::Rotate(_) => None,
    };
    advised(error, hint.map(str::to_owned), None)
}

fn table(rotation: &serde_json::Value) -> Table {
    let mut table = Table::new(&["key", "former", ">rewrapped", "key file"]);
    let text = |name: &str| rotation[name].as_str().unwrap_or("-").to_owned();
    table.row([text("key"), text("former"), rotation["rewrapped"].to_string(), text("key_file")]);
    table
}
