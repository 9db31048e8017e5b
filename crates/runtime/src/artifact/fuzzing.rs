//! Body of the fuzz target for an artifact's sidecars, which may come from another host.

use super::manifest::{FORMAT, SEALED_FORMAT, SnapshotArtifactIntegrity, SnapshotArtifactManifest, read_sidecar, write_sidecar};

/// A sidecar of any content: it is refused, or of the format that is known and the same when it was written and read again.
pub fn sidecars(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (path, again) = (dir.path().join("given"), dir.path().join("again"));
    fs_err::write(&path, data).expect("a temporary file can be written");
    if let Ok(manifest) = read_sidecar::<SnapshotArtifactManifest>(&path) {
        assert!((FORMAT..=SEALED_FORMAT).contains(&manifest.format));
        write_sidecar(&again, &manifest).expect("what was read can be written");
        assert_eq!(read_sidecar::<SnapshotArtifactManifest>(&again).expect("what was written can be read"), manifest);
    }
    if let Ok(integrity) = read_sidecar::<SnapshotArtifactIntegrity>(&path) {
        assert!((FORMAT..=SEALED_FORMAT).contains(&integrity.format));
        write_sidecar(&again, &integrity).expect("what was read can be written");
        assert_eq!(read_sidecar::<SnapshotArtifactIntegrity>(&again).expect("what was written can be read"), integrity);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_sidecar_of_any_content_is_refused_or_reads_back(
            format in prop_oneof![3 => Just(1_u64), 1 => any::<u64>()],
            members in vec(("[a-z:./]{0,9}", any::<u64>(), "[0-9a-f]{0,64}"), 0..4),
            cut in 0_usize..3,
        ) {
            let members: Vec<String> =
                members.iter().map(|(name, bytes, digest)| format!("{name:?}:{{\"bytes\":{bytes},\"blake3\":{digest:?}}}")).collect();
            let text = format!("{{\"format\":{format},\"members\":{{{}}}}}", members.join(","));
            sidecars(&text.as_bytes()[..text.len() - cut]);
        }
    }
}
