//! Bodies of the fuzz targets for what may come from another host: an artifact's sidecars, and archives.

use firkin_engine::qcow2::Qcow2;

use super::{
    ArtifactStore,
    archive::UnpackError,
    manifest::{FORMAT, SEALED_FORMAT, SnapshotArtifactIntegrity, SnapshotArtifactManifest, read_sidecar, write_sidecar},
};

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

/// An archive of any content, compressed or as it is when it was unpacked: it is refused, and whatever is there then is whole.
pub fn archives(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let store = ArtifactStore::open(dir.path(), &Qcow2).expect("a state directory can be opened");
    let packed = zstd::encode_all(data, 1).expect("bytes can be compressed");
    for archive in [data, &packed] {
        if let Err(error @ (UnpackError::Busy | UnpackError::Publish(_))) =
            store.receive(archive).and_then(|incoming| store.unpack(incoming))
        {
            panic!("it is no fault of an archive: {error:?}");
        }
        for id in store.ids().expect("a state directory can be listed") {
            let artifact = store.load(&id).expect("what is visible is whole");
            store.verify(&artifact).expect("what is visible is whole");
        }
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

        #[test]
        fn an_archive_of_any_content_is_refused_and_leaves_nothing_half(
            header in prop_oneof![
                Just(r#"{"format":1,"kind":"sandbox","record":0,"artifacts":[],"layers":[],"roots":[]}"#.to_owned()),
                "\\PC{0,40}",
            ],
            name in prop_oneof![Just("archive.json"), Just("../x")],
            kind in prop_oneof![3 => Just(b'0'), 1 => any::<u8>()],
            noise in vec(any::<u8>(), 0..600),
        ) {
            let mut entry = tar::Header::new_ustar();
            entry.set_path("x").unwrap();
            entry.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            entry.set_size(header.len() as u64);
            entry.set_entry_type(tar::EntryType::new(kind));
            entry.set_cksum();
            let mut archive = entry.as_bytes().to_vec();
            archive.extend(header.as_bytes());
            archive.resize(archive.len().next_multiple_of(512), 0);
            archive.extend(&noise);
            archives(&archive);
            archives(&noise);
        }
    }
}
