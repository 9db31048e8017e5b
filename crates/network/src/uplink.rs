//! Forwarding on the interfaces that guests' packets leave by, and replies come back by.
//!
//! Linux routes a packet on only if forwarding is enabled on the interface it came in by. The slots' own interfaces are ours to
//! set; replies come in by the host's uplink, which on most hosts does not forward. Where it does not, we enable it there, write
//! down that it was us (a marker beside the claim files), and add a rule that drops what would now be routed for strangers. The
//! last server that goes disables it again, unless the host has since been made a router by someone else.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use super::{SetupError, claim, parameters::set};

const MARKER: &str = "forwarding-";

fn forwarding(interface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join("forwarding")
}

fn is_on(parameter: impl AsRef<Path>) -> io::Result<bool> {
    Ok(fs_err::read_to_string(parameter.as_ref())?.trim() == "1")
}

/// Writes down which of `uplinks` [`enable`] will change, and names all that forward because of us. The rules that guard those
/// must be in force before they do.
pub(super) fn mark(dir: &Path, uplinks: &BTreeSet<String>, _lock: &claim::DirLock) -> Result<Vec<String>, SetupError> {
    let failed = |source| SetupError::System { step: "mark an uplink for forwarding", source };
    for uplink in uplinks {
        if !is_on(forwarding(uplink)).map_err(failed)? {
            fs_err::write(dir.join(format!("{MARKER}{uplink}")), "").map_err(failed)?;
        }
    }
    markers(dir).map_err(failed)
}

/// Makes every one of `uplinks` forward.
pub(super) fn enable(uplinks: &BTreeSet<String>, _lock: &claim::DirLock) -> Result<(), SetupError> {
    let failed = |source| SetupError::System { step: "enable forwarding on an uplink", source };
    uplinks.iter().try_for_each(|uplink| set(forwarding(uplink), "1")).map_err(failed)
}

/// Undoes [`enable`] for all servers of the host. Only the last may, while its rules are still in force.
pub(super) fn disable(dir: &Path, _lock: &claim::DirLock) -> Result<(), SetupError> {
    let failed = |source| SetupError::System { step: "disable forwarding on an uplink", source };
    let host_is_router = is_on("/proc/sys/net/ipv4/ip_forward").map_err(failed)?;
    for uplink in markers(dir).map_err(failed)? {
        // An interface that is gone needs nothing.
        if !host_is_router && fs_err::exists(forwarding(&uplink)).map_err(failed)? {
            set(forwarding(&uplink), "0").map_err(failed)?;
        }
        fs_err::remove_file(dir.join(format!("{MARKER}{uplink}"))).map_err(failed)?;
    }
    Ok(())
}

fn markers(dir: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_prefix(MARKER)).map(ToOwned::to_owned));
    }
    found.sort();
    Ok(found)
}
