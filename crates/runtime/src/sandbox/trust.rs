//! Sandboxes whose requests are filled trust the authority of this installation: without, no TLS of theirs to those hosts would come about.
//!
//! They are told at their first start, or when such rules come, by a command in the guest, so that templates of earlier versions are no
//! exception. All others know nothing of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use firkin_files::authorities;

use crate::{
    ground::blocking::blocking,
    machine::{
        command::{self, CommandError, GuestCommand},
        network::Connector,
        outbound::{Filling, FillingError},
    },
    store::spec::{InternetAccess, NoSuchSandbox},
};

/// Some processes, in an emulated guest on a busy host.
const WITHIN: Duration = Duration::from_secs(60);
/// Of what a guest says, what is told.
const MAX_SAID: usize = 300;

/// Where distributions look for authorities of an administrator's, and what they make of all of them: a file, and a link for OpenSSL that
/// is named after the subject. What is there already stays.
const SCRIPT: &str = r#"set -e
umask 022
file=$FIRKIN_OWN/firkin-egress.crt
mkdir -p "$FIRKIN_OWN" "$FIRKIN_CERTS"
printf '%s' "$FIRKIN_AUTHORITY" > "$file"
read -r line < <(sed -n 2p "$file")
grep -qsF -- "$line" "$FIRKIN_BUNDLE" || cat "$file" >> "$FIRKIN_BUNDLE"
if command -v openssl > /dev/null; then ln -sf "$file" "$FIRKIN_CERTS/$(openssl x509 -hash -noout -in "$file").0"; fi
"#;

/// Why a sandbox does not trust the authority.
#[derive(Debug, thiserror::Error)]
pub enum GuestTrustError {
    /// There is none.
    #[error("there is no authority for the sandbox to trust")]
    Authority(#[source] FillingError),
    /// There is no running sandbox.
    #[error(transparent)]
    Gone(NoSuchSandbox),
    /// The sandbox cannot be told.
    #[error("cannot tell the sandbox which authority to trust")]
    Command(#[source] CommandError),
    /// The sandbox did not take it.
    #[error("the sandbox does not take the authority: `{0}`")]
    Refused(String),
}

/// Has a guest trust the authority, by its envd.
pub(crate) async fn tell(
    filling: &Arc<Filling>,
    connector: Connector,
    access_token: Option<&str>,
) -> Result<(), GuestTrustError> {
    let filling = Arc::clone(filling);
    let certificate = blocking(move || filling.certificate()).await.map_err(GuestTrustError::Authority)?;
    let paths = [("OWN", authorities::OWN), ("CERTS", authorities::DIRECTORY), ("BUNDLE", authorities::BUNDLE)];
    let mut env: BTreeMap<_, _> = paths.map(|(name, path)| (format!("FIRKIN_{name}"), path.to_owned())).into();
    env.insert("FIRKIN_AUTHORITY".to_owned(), certificate);
    let command = GuestCommand {
        user: Some("root".to_owned()),
        cwd: Some("/".to_owned()),
        env,
        deadline: WITHIN,
        ..GuestCommand::new(SCRIPT)
    };
    let output = command::run(connector, access_token, &command).await.map_err(GuestTrustError::Command)?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(GuestTrustError::Refused(said.trim().chars().take(MAX_SAID).collect()))
}

/// Whether something is put into requests by these rules.
pub(crate) fn is_filled(internet: &InternetAccess) -> bool {
    matches!(internet, InternetAccess::Steered(steered) if !steered.filled.is_empty())
}
