//! How commands find the server: two small files that it leaves in its state directory.
//!
//! `server.json` names the address of the server that runs now; `api-key` holds the key in plain for whoever may read a file of
//! mode 0600 there. Both are hints for clients only: the server itself trusts neither, it compares keys with its store.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Advise as _, ExitStatus, advised},
    secretfile::SecretFile,
    settings::{ServerSource, Settings},
};

/// The content of `server.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerFile {
    /// Base URL of the control plane and of the data plane.
    pub(crate) url: String,
    /// Process id of the server.
    pub(crate) pid: u32,
    /// Its version. Absent in files of earlier servers.
    #[serde(default)]
    pub(crate) version: String,
    /// How its guests' instructions are executed, for people.
    #[serde(default)]
    pub(crate) acceleration: String,
    /// HTTPS by host names, if it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) https: Option<Https>,
}

/// How clients on this host use HTTPS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Https {
    /// Domain of the sandboxes' host names, with its port.
    pub(crate) domain: String,
    /// Certificates to trust: this host's and the server's own authority's. Absent when the server has the operator's.
    pub(crate) bundle: Option<PathBuf>,
}

/// The largest file that is read as one of ours.
const SIZE_LIMIT: u64 = 4096;

impl ServerFile {
    /// The file, if there is one.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        match read_small(path)? {
            None => Ok(None),
            Some(text) => {
                serde_json::from_str(&text).map(Some).with_context(|| format!("cannot understand `{}`", path.display()))
            }
        }
    }

    /// Writes the file whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string(self).context("cannot write JSON")?;
        replace(path, &text)
    }

    /// Removes the file if it is still this server's.
    pub(crate) fn remove(&self, path: &Path) -> anyhow::Result<()> {
        if Self::read(path)?.as_ref() == Some(self) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Keeps the API key for clients on this host, readable by its owner only.
pub(crate) fn write_api_key(path: &Path, key: &str) -> anyhow::Result<()> {
    replace(path, &format!("{key}\n"))
}

/// The API key that the server keeps for clients on this host, if it may be read.
pub(crate) fn read_api_key(path: &Path) -> anyhow::Result<Option<String>> {
    Ok(read_small(path)?.map(|text| text.trim().to_owned()).filter(|key| !key.is_empty()))
}

/// A secret of the operator's, or why it is not taken and what helps.
pub(crate) fn read_secret(file: &SecretFile) -> anyhow::Result<String> {
    file.read().map_err(|error| {
        let hint = error.hint();
        advised(error, hint, None)
    })
}

fn read_small(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
        Ok(meta) if meta.len() > SIZE_LIMIT => {
            Err(anyhow!("cannot use `{}`: {} bytes are more than {SIZE_LIMIT}", path.display(), meta.len()))
        }
        Ok(_) => Ok(Some(fs::read_to_string(path)?)),
    }
}

/// Keeps what clients on this host must trust: what they trusted before, and the server's own authority.
pub(crate) fn write_bundle(path: &Path, authority: &Path) -> anyhow::Result<()> {
    let mut text = fs::read_to_string(authority)?;
    if let Ok(system) = fs::read_to_string(firkin_files::authorities::BUNDLE) {
        text.push_str(&system);
    }
    replace(path, &text)
}

/// Whole or not at all, and nobody's but its owner's.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(())
}

/// A server and the right to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Base URL of the control plane.
    pub(crate) api_url: String,
    /// Base URL of the data plane.
    pub(crate) sandbox_url: String,
    /// API key.
    pub(crate) api_key: String,
    /// HTTPS by host names, if it is served.
    pub(crate) https: Option<Https>,
}

/// Finds the server that client commands talk to.
pub(crate) fn find(settings: &Settings) -> anyhow::Result<Target> {
    let given = settings.secret_key.as_ref().map(read_secret).transpose()?;
    let start = format!("start a server with `firkin up{}`", settings.state_option());
    match &settings.server {
        ServerSource::Variables { api_url, sandbox_url, api_key } => {
            let api_key = given
                .or_else(|| api_key.clone())
                .ok_or_else(|| anyhow!("E2B_API_URL is set, but E2B_API_KEY is not"))
                .hint("`eval \"$(firkin env)\"` sets both")?;
            Ok(Target { api_url: api_url.clone(), sandbox_url: sandbox_url.clone(), api_key, https: None })
        }
        ServerSource::StateDir => {
            let Some(ServerFile { url, https, .. }) = ServerFile::read(&settings.server_file())? else {
                return Err(anyhow!("no server runs with state directory `{}`", settings.state_dir.display()))
                    .hint(start)
                    .status(ExitStatus::Unreachable);
            };
            if let Some(api_key) = given {
                return Ok(Target { api_url: url.clone(), sandbox_url: url, api_key, https });
            }
            let api_key = match (read_api_key(&settings.api_key_file()), &settings.api_key) {
                (Ok(Some(key)), _) => key,
                (Ok(None) | Err(_), Some(key)) => key.clone(),
                (Ok(None), None) => {
                    return Err(anyhow!("there is no API key in `{}`", settings.state_dir.display()))
                        .hint("if the server has the operator's key, name its file with `--api-key-file`");
                }
                (Err(error), None) => {
                    return Err(error)
                        .context("cannot read the API key")
                        .hint("run as the user that runs the server, or set E2B_API_KEY and E2B_API_URL");
                }
            };
            Ok(Target { api_url: url.clone(), sandbox_url: url, api_key, https })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser as _;

    use super::*;
    use crate::settings::{Surroundings, resolve};

    fn settings(dir: &Path, around: &Surroundings) -> Settings {
        let cli =
            crate::args::Cli::try_parse_from(["firkin", "sandbox", "ls", "--state-dir", &dir.display().to_string()]).unwrap();
        resolve(&cli, around)
    }

    #[test]
    fn what_the_server_left_is_what_clients_find() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), &Surroundings::default());
        let url = "http://127.0.0.1:4321".to_owned();
        let file = ServerFile { url, pid: 7, version: "1".to_owned(), acceleration: "kvm".to_owned(), https: None };
        file.write(&settings.server_file()).unwrap();
        write_api_key(&settings.api_key_file(), "e2b_00ff").unwrap();
        for path in [settings.server_file(), settings.api_key_file()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(
            find(&settings).unwrap(),
            Target { api_url: file.url.clone(), sandbox_url: file.url.clone(), api_key: "e2b_00ff".to_owned(), https: None }
        );

        let newer = ServerFile { pid: 8, ..file.clone() };
        newer.write(&settings.server_file()).unwrap();
        file.remove(&settings.server_file()).unwrap();
        assert_eq!(ServerFile::read(&settings.server_file()).unwrap(), Some(newer.clone()));
        newer.remove(&settings.server_file()).unwrap();
        assert_eq!(ServerFile::read(&settings.server_file()).unwrap(), None);
    }

    #[test]
    fn without_a_server_the_next_step_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = find(&settings(dir.path(), &Surroundings::default())).unwrap_err();
        let dir = dir.path().display();
        assert_eq!(
            crate::failure::render(&error),
            format!(
                "error: no server runs with state directory `{dir}`\n\
                 hint: start a server with `firkin up --state-dir {dir}`\n"
            )
        );
        assert_eq!(crate::failure::status_of(&error), ExitStatus::Unreachable);
    }

    #[test]
    fn a_file_that_is_too_large_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), &Surroundings::default());
        fs::write(settings.server_file(), vec![b' '; 5000]).unwrap();
        assert!(find(&settings).unwrap_err().to_string().contains("more than 4096"));
    }
}
