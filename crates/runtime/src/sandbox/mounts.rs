//! Volumes that a sandbox is to have: which they are, and where they may be.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use firkin_share::{Access, Share};

use crate::{
    ground::team::Scope,
    machine::session::Session,
    machine::volumes::{Served, VolumeLinks},
    shared::Shared,
    storage::volumes::{VolumeError, VolumeHold, Volumes},
    store::{
        SandboxRecord,
        spec::{SandboxId, VolumeMount},
    },
};

/// Volumes of one sandbox: each costs its guest two threads, and the server a connection.
const MAX_MOUNTS: usize = 16;

/// Longest path to mount at, as the kernel takes it.
const MAX_PATH_BYTES: usize = 4000;

/// Before a volume that could not be opened is opened again: a disk that fails has room for other work meanwhile.
const OPEN_AGAIN: Duration = Duration::from_secs(2);

/// Where the system has its own.
const TAKEN: [&str; 5] = ["/dev", "/proc", "/sys", "/run", "/etc"];

/// Why a sandbox cannot have the volumes that it is to have. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    /// There are too many.
    #[error("a sandbox has at most {MAX_MOUNTS} volumes")]
    TooMany,
    /// There is none of that name.
    #[error("volume '{0}' not found")]
    NotFound(String),
    /// Nothing can be mounted there.
    #[error("a volume cannot be mounted at `{path}`: {reason}")]
    Path {
        /// Where.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// They cannot be looked up.
    #[error("cannot look up the sandbox's volumes")]
    Volumes(#[source] VolumeError),
}

/// Finds the volumes that are asked for, and holds them until the sandbox is on record.
pub(crate) async fn resolve(shared: &Shared, scope: &Scope, mounts: &mut [VolumeMount]) -> Result<Vec<VolumeHold>, MountsError> {
    check(mounts)?;
    let mut holds = Vec::new();
    for mount in mounts {
        let found = shared.volumes.hold_by_name(scope, &mount.name).await.map_err(|error| match error {
            VolumeError::NotFound(_) => MountsError::NotFound(mount.name.clone()),
            error => MountsError::Volumes(error),
        })?;
        mount.volume = found.id().to_owned();
        holds.push(found);
    }
    Ok(holds)
}

/// Holds those of a sandbox that another is to be like.
pub(crate) fn hold(shared: &Shared, mounts: &[VolumeMount]) -> Vec<VolumeHold> {
    mounts.iter().filter_map(|mount| shared.volumes.hold(&mount.volume).ok()).collect()
}

/// Refuses paths that are none, and a volume within another: which of two would be over the other is nobody's to guess.
fn check(mounts: &[VolumeMount]) -> Result<(), MountsError> {
    if mounts.len() > MAX_MOUNTS {
        return Err(MountsError::TooMany);
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for VolumeMount { path, .. } in mounts {
        let refused = |reason| Err(MountsError::Path { path: path.clone(), reason });
        let parts = path.strip_prefix('/').map(|rest| rest.split('/'));
        let Some(mut parts) = parts else { return refused("the path must be absolute") };
        if path.len() > MAX_PATH_BYTES || path.contains('\0') {
            return refused("no file has such a path");
        }
        if parts.any(|part| matches!(part, "" | "." | "..")) {
            return refused("it must name a directory, with no `.`, `..` or empty part");
        }
        let is_within =
            |path: &str, other: &str| path.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if TAKEN.iter().any(|taken| is_within(path, taken)) {
            return refused("the system has its own there");
        }
        if seen.iter().any(|other| is_within(path, other) || is_within(other, path)) {
            return refused("another volume is mounted there, above or below");
        }
        seen.insert(path);
    }
    Ok(())
}

/// Answers the guest of a sandbox that runs for its volumes. They are opened aside: only who asks them for something waits for that.
pub(crate) fn serve(shared: &Shared, record: &SandboxRecord, session: &Session) -> VolumeLinks {
    let served = record.spec.volumes.iter().map(|mount| Served {
        path: mount.path.clone(),
        access: if mount.read_only { Access::Read } else { Access::Write },
        share: Box::pin(open(Arc::clone(&shared.volumes), mount.volume.clone(), record.id.clone())),
    });
    let served = served.collect();
    VolumeLinks::open(served, &session.link.connector(), session.nonce().as_ref())
}

/// Opens a volume, as soon as that can be done.
async fn open(volumes: Arc<Volumes>, volume: String, sandbox: SandboxId) -> Arc<Share> {
    loop {
        match volumes.share(&volume).await {
            Ok(share) => return share,
            Err(error) => {
                tracing::error!(%sandbox, volume, error = firkin_causes::chain(&error), "a sandbox's volume cannot be opened; what is asked of it waits");
            }
        }
        tokio::time::sleep(OPEN_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_a_place_of_its_own() {
        let reason = |paths: &[&str]| {
            let mount = |path: &&str| VolumeMount::new("v", *path);
            check(&paths.iter().map(mount).collect::<Vec<_>>()).err().map(|error| error.to_string())
        };
        for good in [&["/mnt"] as &[&str], &["/mnt/a", "/mnt/b", "/mnt/ab"], &["/home/user/x y"], &[]] {
            assert_eq!(reason(good), None, "{good:?}");
        }
        for bad in [
            &["mnt"] as &[&str],
            &["/"],
            &["/a/"],
            &["/a/../b"],
            &["/a//b"],
            &["/dev/x"],
            &["/proc"],
            &["/a\0b"],
            &["/a", "/a"],
            &["/a", "/a/b"],
            &["/a/b", "/a"],
            &["/a"; 17],
        ] {
            assert!(reason(bad).is_some(), "{bad:?}");
        }
    }
}
