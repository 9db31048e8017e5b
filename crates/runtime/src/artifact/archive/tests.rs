//! Archives between two stores: what comes is what left, and what is damaged, foreign or cut off leaves nothing.

use std::{
    collections::HashSet,
    io::{Cursor, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use firkin_engine::{
    Acceleration, DiskFormat, Fingerprint, Shape,
    qcow2::{self, Backing, Format, Qcow2},
};
use fs_err as fs;

use super::{super::*, *};
use crate::capacity::ResourceBudget;

/// A host with its own root image.
struct Host {
    dir: tempfile::TempDir,
    store: ArtifactStore,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(&dir.path().join("state"), &Qcow2).unwrap();
        Self { dir, store }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn image(&self) -> PathBuf {
        let path = self.dir.path().join("rootfs");
        if !path.exists() {
            fs::write(&path, b"a root image".repeat(1000)).unwrap();
        }
        path
    }

    fn manifest(&self, id: &ArtifactId, memory: MemoryMember, layers: &[LayerId]) -> SnapshotArtifactManifest {
        let engine = Fingerprint {
            engine: "fake".into(),
            version: "1".into(),
            machine: "m".into(),
            acceleration: Acceleration::None,
            cpu: "c".into(),
            devices: None,
            program: None,
            announces: false,
        };
        SnapshotArtifactManifest {
            format: FORMAT,
            id: id.clone(),
            kind: if memory == MemoryMember::Full { ArtifactKind::BaseTemplate } else { ArtifactKind::Pause },
            reason: None,
            logical_id: "base".into(),
            parent: None,
            created_at: jiff::Timestamp::now(),
            engine,
            guest: GuestIdentity { kernel: "k".into(), agent: "a".into(), agent_generation: 1, nonce: None },
            shape: Shape { vcpus: 1, memory_mib: 1 },
            budget: ResourceBudget { cpus: 1, memory_mib: 1, disk_mib: 1 },
            epoch: 1,
            memory,
            disk: DiskMembers { rootfs: "r".into(), rootfs_path: self.image(), layers: layers.to_vec() },
        }
    }

    /// An empty layer over these.
    fn layer(&self, name: &str, below: &[LayerId]) -> Vec<LayerId> {
        let id: LayerId = name.parse().unwrap();
        let backing = match below.last() {
            Some(below) => Backing { path: self.store.layer(below), format: Format::Qcow2 },
            None => Backing { path: self.image(), format: Format::Raw },
        };
        let path = self.dir.path().join(format!("{name}.qcow2"));
        qcow2::create(&path, &backing, 1 << 20).unwrap();
        self.store.adopt_layer(&id, &path).unwrap();
        below.iter().cloned().chain([id]).collect()
    }

    /// A template with a hole in its memory.
    fn template(&self, layer: &str) -> Artifact {
        let draft = self.store.draft().unwrap();
        fs::write(draft.dir().join("state"), format!("state {layer}")).unwrap();
        let mut memory = vec![0; 1 << 20];
        memory[500_000..504_096].fill(7);
        fs::write(draft.dir().join("memory"), memory).unwrap();
        let manifest = self.manifest(draft.id(), MemoryMember::Full, &self.layer(layer, &[]));
        self.store.publish(draft, manifest).unwrap()
    }

    /// A pause over it, with two layers of its own.
    fn pause(&self, base: &Artifact) -> Artifact {
        let draft = self.store.draft().unwrap();
        fs::write(draft.dir().join("state"), b"state of a pause").unwrap();
        fs::write(draft.dir().join("memory.diff"), b"pages").unwrap();
        let memory = MemoryMember::Diff { base: base.manifest.id.clone() };
        let layers = self.layer("upper", &self.layer("middle", &base.manifest.disk.layers));
        let manifest = self.manifest(draft.id(), memory, &layers);
        self.store.publish(draft, manifest).unwrap()
    }

    fn pack(&self, artifact: &Artifact) -> Vec<u8> {
        let record = serde_json::json!({"name": "x"});
        let packing = self.store.packing(&artifact.manifest.id, ArchiveKind::Sandbox, record).unwrap();
        let mut archive = Vec::new();
        packing.write(&mut archive).unwrap();
        archive
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, UnpackError> {
        let incoming = self.store.receive(Cursor::new(archive))?;
        self.store.unpack(incoming)
    }

    /// Names in the directories of what is visible.
    fn visible(&self) -> Vec<String> {
        let all = ["artifacts", "layers", "roots"].map(|place| fs::read_dir(self.state().join(place)));
        let mut names: Vec<String> = all
            .into_iter()
            .filter_map(Result::ok)
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn landed(&self) -> Vec<PathBuf> {
        fs::read_dir(self.state().join(INCOMING)).map_or_else(|_| Vec::new(), |dir| dir.map(|e| e.unwrap().path()).collect())
    }
}

/// The pause of a host of its own, and its archive.
fn packed() -> (Host, Artifact, Vec<u8>) {
    let host = Host::new();
    let pause = host.pause(&host.template("lower"));
    let archive = host.pack(&pause);
    (host, pause, archive)
}

/// Name and content of an entry.
type Entry = (String, Vec<u8>);

/// What an archive has, entry by entry.
fn entries(archive: &[u8]) -> Vec<Entry> {
    let mut tar = tar::Archive::new(zstd::Decoder::new(archive).unwrap());
    let read = |mut entry: tar::Entry<'_, _>| {
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    };
    tar.entries().unwrap().map(|entry| read(entry.unwrap())).collect()
}

/// An archive of these.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    for (name, content) in entries {
        let mut header = tar::Header::new_ustar();
        // The library writes no path that leads elsewhere.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, &content[..]).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// What is there of an archive when its last entry was on its way.
fn cut_off(from: &[u8]) -> Vec<u8> {
    let mut raw = zstd::decode_all(from).unwrap();
    // The last entry has two blocks, and the end has two.
    raw.truncate(raw.len() - 3 * 512 - 100);
    zstd::encode_all(&raw[..], 1).unwrap()
}

/// The same archive with another header.
fn with_header(from: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut entries = entries(from);
    let mut header: serde_json::Value = serde_json::from_slice(&entries[0].1).unwrap();
    change(&mut header);
    entries[0].1 = serde_json::to_vec(&header).unwrap();
    archive(&entries)
}

#[test]
fn what_comes_is_what_left_over_paths_of_its_own() {
    let (there, pause, archive) = packed();
    assert!(archive.len() < 16 << 10, "{} bytes", archive.len());
    let here = Host::new();
    let came = here.unpack(&archive).unwrap();
    assert!(!came.was_here && here.landed().is_empty());
    let found = here.store.load(&pause.manifest.id).unwrap();
    here.store.verify(&found).unwrap();
    assert_eq!(fs::read(&found.memory).unwrap(), fs::read(&pause.memory).unwrap());
    assert_eq!(fs::read(found.memory_diff.as_ref().unwrap()).unwrap(), b"pages");
    assert!(fs::metadata(&found.memory).unwrap().blocks() * 512 <= 64 << 10, "a hole is a hole again");
    let image = &found.manifest.disk.rootfs_path;
    assert!(image.starts_with(here.state().join("roots")) && image.ends_with("rootfs.ext4"));
    assert_eq!(fs::read(image).unwrap(), fs::read(there.image()).unwrap());
    let below: Vec<PathBuf> = found.layers.iter().map(|layer| Qcow2.below(layer).unwrap().unwrap()).collect();
    assert_eq!(below, [image, &found.layers[0], &found.layers[1]].map(|path| path.clone()));
    let mut manifest = found.manifest.clone();
    manifest.disk.rootfs_path = there.image();
    assert_eq!(manifest, pause.manifest);

    assert!(here.unpack(&archive).unwrap().was_here, "once more changes nothing");
    let back = here.pack(&found);
    assert!(there.unpack(&back).unwrap().was_here, "where it came from it is known");
    assert_eq!(entries(&back), entries(&archive), "an archive says nothing of the host that made it");
}

#[test]
fn a_state_directory_that_moves_takes_root_images_that_came_along() {
    let (_, pause, archive) = packed();
    let mut here = Host::new();
    here.unpack(&archive).unwrap();
    let moved = here.dir.path().join("moved");
    fs::rename(here.state(), &moved).unwrap();
    here.store = ArtifactStore::open(&moved, &Qcow2).unwrap();
    let found = here.store.load(&pause.manifest.id).unwrap();
    here.store.verify(&found).unwrap();
    assert!(found.manifest.disk.rootfs_path.starts_with(&moved) && found.manifest.disk.rootfs_path.is_file());
    assert_eq!(ArtifactStore::root_images(&moved).unwrap(), HashSet::from([found.manifest.disk.rootfs_path]));
}

#[test]
fn a_base_and_an_image_that_are_here_are_not_written_again() {
    let there = Host::new();
    let base = there.template("lower");
    let here = Host::new();
    here.unpack(&there.pack(&base)).unwrap();
    let pause = there.pause(&base);
    let archive = there.pack(&pause);
    let incoming = here.store.receive(Cursor::new(&archive)).unwrap();
    // Two layers that hold the same: nothing.
    let layer = fs::metadata(&pause.layers[1]).unwrap().len();
    assert_eq!(incoming.missing_bytes(), 2 * layer + b"state of a pause".len() as u64 + b"pages".len() as u64);
    here.store.unpack(incoming).unwrap();

    // An image of the host's own is as good as one that came.
    let other = Host::new();
    other.template("own");
    other.unpack(&archive).unwrap();
    assert_eq!(other.store.load(&pause.manifest.id).unwrap().manifest.disk.rootfs_path, other.image());
    assert!(!other.state().join("roots").exists());
}

#[test]
fn what_is_here_may_be_left_out_and_nothing_else() {
    let there = Host::new();
    let base = there.template("lower");
    let pause = there.pause(&base);
    let here = Host::new();
    here.unpack(&there.pack(&base)).unwrap();
    let packing = || there.store.packing(&pause.manifest.id, ArchiveKind::Artifact, serde_json::Value::Null).unwrap();
    let header = serde_json::to_vec(packing().header()).unwrap();
    let sent = |without: &HashSet<String>| {
        let mut archive = Vec::new();
        packing().without(without).write(&mut archive).unwrap();
        archive
    };

    let survey = here.store.survey(&header, &[]).unwrap();
    assert!(matches!(here.store.survey(&header, &[]), Err(UnpackError::Busy)));
    let known: HashSet<String> = survey.here().into_iter().collect();
    let archive = sent(&known);
    let all: HashSet<String> =
        entries(&there.pack(&pause))[1..].iter().map(|(name, _)| name["blobs/".len()..].to_owned()).collect();
    assert_eq!(entries(&archive).len() - 1, all.len() - known.len());
    assert!(known.is_subset(&all) && known.len() < all.len() && known.len() >= 2, "{known:?} of {all:?}");
    let incoming = survey.receive(Cursor::new(&archive)).unwrap();
    let found = here.store.unpack(incoming).unwrap();
    here.store.verify(&found.artifact).unwrap();

    let other = Host::new();
    let survey = other.store.survey(&header, &[]).unwrap();
    assert_eq!(survey.here(), Vec::<String>::new());
    let error = other.store.unpack(survey.receive(Cursor::new(&archive)).unwrap()).unwrap_err();
    assert!(matches!(error, UnpackError::Entry { .. }), "{error:?}");
    assert_eq!(other.visible(), Vec::<String>::new());
    let survey = other.store.survey(&header, &[]).unwrap();
    let another = survey.receive(Cursor::new(there.pack(&base))).map(drop).unwrap_err();
    assert!(matches!(another, UnpackError::Contradiction { .. }), "{another:?}");
}

#[test]
fn an_archive_of_which_all_has_landed_carries_nothing_and_is_taken_in() {
    let (there, pause, archive) = packed();
    let here = Host::new();
    let incoming = here.state().join("incoming");
    fs::create_dir_all(&incoming).unwrap();
    let contents = &entries(&archive)[1..];
    for (name, content) in contents {
        fs::write(incoming.join(&name["blobs/".len()..]), content).unwrap();
    }
    let packing = there.store.packing(&pause.manifest.id, ArchiveKind::Artifact, serde_json::Value::Null).unwrap();
    let survey = here.store.survey(&serde_json::to_vec(packing.header()).unwrap(), &[]).unwrap();
    let landed: HashSet<String> = survey.here().into_iter().collect();
    assert_eq!(landed.len(), contents.len(), "a server that was killed had all of it");
    let mut archive = Vec::new();
    packing.without(&landed).write(&mut archive).unwrap();
    let found = here.store.unpack(survey.receive(Cursor::new(&archive)).unwrap()).unwrap();
    here.store.verify(&found.artifact).unwrap();
}

#[test]
fn damage_is_refused_by_the_name_of_the_member() {
    let (_there, _, whole) = packed();
    let header: ArchiveHeader = serde_json::from_slice(&entries(&whole)[0].1).unwrap();
    let names: Vec<String> = header.blobs().iter().map(super::header::Blob::name).collect();
    assert_eq!(names.len(), entries(&whole).len() - 1);
    let here = Host::new();
    for (at, name) in names.iter().enumerate() {
        let refused = |change: &dyn Fn(&mut Entry)| {
            let mut changed = entries(&whole);
            change(&mut changed[at + 1]);
            let error = here.unpack(&archive(&changed)).unwrap_err();
            assert_eq!(here.visible(), Vec::<String>::new(), "{name}");
            firkin_causes::chain(&error)
        };
        let member = name.split('`').nth(1).unwrap();
        for told in [
            refused(&|(_, content)| *content.last_mut().unwrap() ^= 1),
            refused(&|(_, content)| content.push(0)),
            refused(&|(_, content)| content.truncate(content.len() - 1)),
            refused(&|(name, _)| "blobs/../../etc/passwd".clone_into(name)),
        ] {
            assert!(told.contains(member), "{told} does not name {member}");
        }
    }
    here.unpack(&whole).unwrap();
}

#[test]
fn whatever_byte_is_flipped_it_is_refused_or_harmless() {
    let (_there, pause, whole) = packed();
    for at in (0..whole.len()).step_by(37) {
        let here = Host::new();
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        match here.unpack(&changed) {
            // As in the size of a window.
            Ok(_) => here.store.verify(&here.store.load(&pause.manifest.id).unwrap()).unwrap(),
            Err(_) => assert_eq!(here.visible(), Vec::<String>::new(), "byte {at}"),
        }
    }
}

#[test]
fn an_archive_that_was_cut_off_leaves_nothing_but_what_the_next_try_uses() {
    let (_there, pause, whole) = packed();
    for at in (0..whole.len()).step_by(101) {
        let here = Host::new();
        let error = here.unpack(&whole[..at]).unwrap_err();
        assert!(matches!(error, UnpackError::NotAnArchive(_) | UnpackError::Read { .. }), "{at}: {error:?}");
        assert_eq!(here.visible(), Vec::<String>::new(), "{at}");
    }

    let here = Host::new();
    let error = here.unpack(&cut_off(&whole)).unwrap_err();
    assert!(matches!(&error, UnpackError::Read { at, .. } if at.starts_with("member `state` of")), "{error:?}");
    let memory = here.landed().into_iter().find(|path| fs::metadata(path).unwrap().len() == 1 << 20).unwrap();
    let written = fs::metadata(&memory).unwrap().ino();
    // The server ends in between.
    let store = ArtifactStore::open(&here.state(), &Qcow2).unwrap();
    let incoming = store.receive(Cursor::new(&whole)).unwrap();
    assert!(incoming.missing_bytes() < 1 << 20);
    store.unpack(incoming).unwrap();
    let memory = store.load(&pause.manifest.id).unwrap().memory;
    assert_eq!(fs::metadata(memory).unwrap().ino(), written, "it was not written a second time");
}

#[test]
fn what_is_foreign_is_refused_before_anything_is_written() {
    let (_there, _, whole) = packed();
    let here = Host::new();
    let refused = |archive: &[u8]| {
        let error = here.store.receive(Cursor::new(archive)).map(drop).unwrap_err();
        assert_eq!((here.visible(), here.landed()), (Vec::new(), Vec::new()));
        error
    };
    assert!(matches!(refused(b"something else"), UnpackError::NotAnArchive(_)));
    assert!(matches!(refused(&archive(&[("other".into(), b"x".to_vec())])), UnpackError::NotAnArchive(_)));
    let newer = with_header(&whole, |header| header["format"] = 2.into());
    assert!(matches!(refused(&newer), UnpackError::Format { found: 2 }));
    let sealed = with_header(&whole, |header| header["artifacts"][1]["manifest"]["format"] = SEALED_FORMAT.into());
    assert!(matches!(refused(&sealed), UnpackError::Sealed { .. }));
    let long = with_header(&whole, |header| header["record"] = " ".repeat(17 << 20).into());
    assert!(matches!(refused(&long), UnpackError::HeaderTooLong { .. }));
    assert!(matches!(refused(&archive(&[(super::header::HEADER.into(), b"{".to_vec())])), UnpackError::Header(_)));
}

#[test]
fn an_archive_that_contradicts_itself_is_refused() {
    let (_there, _, whole) = packed();
    let here = Host::new();
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 9] = [
        ("no artifact", |header| header["artifacts"] = serde_json::json!([])),
        ("no base", |header| drop(header["artifacts"].as_array_mut().unwrap().remove(0))),
        ("a layer too few", |header| drop(header["layers"].as_array_mut().unwrap().pop())),
        ("a layer twice", |header| {
            let layers = header["layers"].as_array_mut().unwrap();
            layers.push(layers[0].clone());
        }),
        ("another form", |header| header["layers"][0]["form"] = "../x".into()),
        ("two layers below", |header| header["artifacts"][1]["manifest"]["disk"]["layers"].as_array_mut().unwrap().reverse()),
        ("no image", |header| header["roots"] = serde_json::json!([])),
        ("a member of its own", |header| {
            let members = header["artifacts"][1]["members"].as_object_mut().unwrap();
            let state = members["state"].clone();
            members.insert("../../x".into(), state);
        }),
        ("no digest", |header| header["artifacts"][1]["members"]["state"]["blake3"] = "../../x".into()),
    ];
    for (name, change) in changes {
        let error = here.unpack(&with_header(&whole, change)).unwrap_err();
        assert!(matches!(error, UnpackError::Contradiction { .. }), "{name}: {error:?}");
    }
    let error = here.unpack(&with_header(&whole, |header| header["artifacts"][0]["manifest"]["id"] = "../x".into())).unwrap_err();
    assert!(matches!(error, UnpackError::Header(_)), "an id leads nowhere: {error:?}");
    let mut more = entries(&whole);
    more.push(("blobs/more".into(), Vec::new()));
    assert!(matches!(here.unpack(&archive(&more)).unwrap_err(), UnpackError::Entry { .. }));
    assert_eq!(here.visible(), Vec::<String>::new());
}

#[test]
fn what_is_here_under_the_same_id_and_is_another_stays() {
    let (_there, pause, whole) = packed();
    let here = Host::new();
    here.unpack(&whole).unwrap();
    let before = here.visible();
    let epoch = with_header(&whole, |header| header["artifacts"][1]["manifest"]["epoch"] = 9.into());
    assert!(matches!(here.unpack(&epoch).unwrap_err(), UnpackError::Taken { what } if what.contains(pause.manifest.id.as_str())));

    let other = Host::new();
    let base = other.template("lower");
    let state = other.pack(&base);
    // Its layer is of another size.
    let layer = here.state().join("layers/lower.qcow2");
    fs::set_permissions(&layer, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::OpenOptions::new().write(true).open(&layer).unwrap().set_len(1 << 20).unwrap();
    assert!(matches!(here.unpack(&state).unwrap_err(), UnpackError::Taken { what } if what == "layer `lower`"));
    assert_eq!(here.visible(), before);
}

#[test]
fn a_layer_that_names_files_of_the_host_is_refused() {
    let (there, pause, _) = packed();
    let layer = &pause.layers[2];
    let mut bytes = fs::read(layer).unwrap();
    // A file of its own for its data.
    bytes[79] = 4;
    fs::set_permissions(layer, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(layer, &bytes).unwrap();
    let draft = there.store.draft().unwrap();
    fs::write(draft.dir().join("state"), b"s").unwrap();
    fs::write(draft.dir().join("memory"), b"m").unwrap();
    let manifest = there.manifest(draft.id(), MemoryMember::Full, &pause.manifest.disk.layers);
    let hostile = there.store.publish(draft, manifest).unwrap();
    let here = Host::new();
    let error = here.unpack(&there.pack(&hostile)).unwrap_err();
    assert!(matches!(&error, UnpackError::Layer { layer, .. } if layer.as_str() == "upper"), "{error:?}");
    assert_eq!(here.store.ids().unwrap(), []);
}

/// An artifact with a record that is nobody's business, ready to be sent, and its header.
fn offered(there: &Host, artifact: &Artifact) -> (Packing, Vec<u8>) {
    let packing = there.store.packing(&artifact.manifest.id, ArchiveKind::Artifact, serde_json::Value::Null).unwrap();
    let header = serde_json::to_vec(packing.header()).unwrap();
    (packing, header)
}

fn written(packing: &Packing) -> Vec<u8> {
    let mut archive = Vec::new();
    packing.write(&mut archive).unwrap();
    archive
}

#[test]
fn a_content_that_broke_off_goes_on_where_it_was() {
    let there = Host::new();
    let base = there.template("lower");
    let (packing, header) = offered(&there, &base);
    let whole = written(&packing);
    let survey = |here: &Host| here.store.survey(&header, &[]).unwrap();
    // Its memory, which is the largest of it, breaks off behind what of it is no hole.
    let raw = zstd::decode_all(&whole[..]).unwrap();
    let digest = base.integrity.members["memory"].blake3.clone();
    let head = format!("blobs/{digest}");
    let at = raw.windows(head.len()).rposition(|found| found == head.as_bytes()).unwrap() + 512;
    let broken = zstd::encode_all(&raw[..at + 600_000], 1).unwrap();
    let break_off = |here: &Host| {
        let cut = here.store.unpack(survey(here).receive(Cursor::new(&broken)).unwrap()).unwrap_err();
        assert!(matches!(cut, UnpackError::Read { .. }), "{cut:?}");
        let found = survey(here);
        let begun = found.begun();
        assert_eq!((begun[0].0.as_str(), begun[0].1, begun.len()), (digest.as_str(), 600_000 / 4096 * 4096, 1));
        let (packing, _) = offered(&there, &base);
        let rest = written(&packing.without(&found.here().into_iter().collect()).from(begun.into_iter().collect()));
        (found, rest)
    };
    let here = Host::new();
    let (found, rest) = break_off(&here);
    let names: Vec<String> = entries(&rest).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&format!("{head}@{}", 600_000 / 4096 * 4096)) && !names.contains(&head), "{names:?}");
    let came = here.store.unpack(found.receive(Cursor::new(&rest)).unwrap()).unwrap();
    here.store.verify(&came.artifact).unwrap();
    assert!(fs::metadata(&came.artifact.memory).unwrap().blocks() * 512 < 1 << 19, "its holes are holes");
    assert_eq!(here.landed(), Vec::<PathBuf>::new());

    // What is here of it is believed no more than what comes.
    let here = Host::new();
    let (found, rest) = break_off(&here);
    let part = here.landed().into_iter().find(|path| path.extension().is_some()).unwrap();
    let mut content = fs::read(&part).unwrap();
    content[500_001] ^= 1;
    fs::write(&part, content).unwrap();
    let damaged = here.store.unpack(found.receive(Cursor::new(&rest)).unwrap()).unwrap_err();
    assert!(matches!(damaged, UnpackError::Damaged { .. }), "{damaged:?}");
    let found = survey(&here);
    assert_eq!((found.begun(), here.visible()), (Vec::new(), Vec::new()));
    // Nor is a rest of what is not here.
    let refused = here.store.unpack(found.receive(Cursor::new(&rest)).unwrap()).unwrap_err();
    assert!(matches!(refused, UnpackError::Entry { .. }), "{refused:?}");
    here.store.unpack(survey(&here).receive(Cursor::new(&whole)).unwrap()).unwrap();
}

#[test]
fn what_is_damaged_here_is_replaced_once_a_whole_one_has_come() {
    let (there, pause, _) = packed();
    let here = Host::new();
    let (packing, header) = offered(&there, &pause);
    let whole = written(&packing);
    drop(here.unpack(&whole).unwrap());
    let came = here.store.load(&pause.manifest.id).unwrap();
    let damage = |path: &Path| {
        let mut content = fs::read(path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(path, content).unwrap();
    };
    for path in [&came.state, &came.memory, came.layers.last().unwrap()] {
        damage(path);
        here.store.verify(&came).unwrap_err();
        let strange = here.unpack(&whole).unwrap_err();
        assert!(
            matches!(strange, UnpackError::Here { .. } | UnpackError::Taken { .. }),
            "anybody's replaces nothing: {strange:?}"
        );
        // Half of one replaces nothing either.
        let survey = || here.store.survey(&header, &[]).unwrap();
        here.store.unpack(survey().receive(Cursor::new(cut_off(&whole))).unwrap()).unwrap_err();
        assert!(here.store.dir(&pause.manifest.id).exists() && !here.store.quarantined().is_empty());
        let found = survey();
        let known = found.here().into_iter().collect();
        let mended = here.store.unpack(found.receive(Cursor::new(written(&offered(&there, &pause).0.without(&known)))).unwrap());
        here.store.verify(&mended.unwrap().artifact).unwrap();
        assert_eq!(here.store.quarantined(), Vec::new());
        assert!(here.visible().iter().all(|name| !name.starts_with('.')), "{:?}", here.visible());
    }
    here.store.verify(&here.store.load(&pause.manifest.id).unwrap()).unwrap();
}

#[tokio::test]
async fn contents_that_are_packed_one_by_one_are_an_archive() {
    use futures::{StreamExt as _, TryStreamExt as _, stream};
    let (there, pause, _) = packed();
    let (packing, header) = offered(&there, &pause);
    let packed = packing.contents().map(|content| {
        let mut bytes = Vec::new();
        content.open().unwrap().read_to_end(&mut bytes).unwrap();
        (content.integrity.blake3, bytes::Bytes::from(zstd::encode_all(&bytes[..], 1).unwrap()))
    });
    let packed: std::collections::HashMap<String, bytes::Bytes> = packed.collect();
    let archive = async |without: HashSet<String>| {
        let packed = packed.clone();
        let get = move |content: MemberIntegrity| {
            let found: Packed = stream::iter([Ok(packed[&content.blake3].clone())]).boxed();
            Box::pin(async move { Ok(found) }) as futures::future::BoxFuture<'static, _>
        };
        composed(header.clone().into(), &without, get).unwrap().try_collect::<Vec<_>>().await.unwrap().concat()
    };
    let here = Host::new();
    let whole = archive(HashSet::new()).await;
    assert_eq!(
        entries(&whole),
        entries(&written(&packing))
            .into_iter()
            .enumerate()
            .map(|(at, entry)| {
                // The header is as it was said to be, byte by byte.
                if at == 0 { (entry.0, header.clone()) } else { entry }
            })
            .collect::<Vec<_>>()
    );
    here.store.unpack(here.store.survey(&header, &[]).unwrap().receive(Cursor::new(&whole)).unwrap()).unwrap();
    let known: HashSet<String> = here.store.survey(&header, &[]).unwrap().here().into_iter().collect();
    assert_eq!(entries(&archive(known).await).len(), 1, "what is here is not asked for");
}

#[test]
fn one_archive_is_taken_in_at_a_time() {
    let (_there, _, whole) = packed();
    let here = Host::new();
    let first = here.store.receive(Cursor::new(&whole)).unwrap();
    assert!(matches!(here.store.receive(Cursor::new(&whole)).unwrap_err(), UnpackError::Busy));
    drop(first);
    here.unpack(&whole).unwrap();
}

#[test]
fn what_came_stays_while_it_is_needed_and_goes_with_all_that_came_with_it() {
    let (_there, pause, whole) = packed();
    let here = Host::new();
    let came = here.unpack(&whole).unwrap();
    let collect = |keep: &[ArtifactId]| here.store.collect(&here.store.candidates().unwrap(), keep, &[]).unwrap();
    let all = here.visible();
    assert!(collect(&[]).is_empty(), "it is not on record yet");
    drop(came);
    assert!(collect(std::slice::from_ref(&pause.manifest.id)).is_empty());
    assert_eq!(here.visible(), all);
    assert_eq!(collect(&[]).len(), 2);
    assert_eq!(here.visible(), Vec::<String>::new());
}

#[test]
fn what_has_landed_and_is_not_come_back_for_goes_after_a_day() {
    let (_there, _, whole) = packed();
    let here = Host::new();
    here.unpack(&cut_off(&whole)).unwrap_err();
    let collect = || here.store.collect(&here.store.candidates().unwrap(), &[], &[]).unwrap();
    collect();
    let landed = here.landed();
    assert!(!landed.is_empty());
    for path in &landed {
        let yesterday = std::time::SystemTime::now() - LANDED_FOR - std::time::Duration::from_secs(60);
        fs::OpenOptions::new().write(true).open(path).unwrap().file().set_modified(yesterday).unwrap();
    }
    let receiving = here.store.receive(Cursor::new(&whole)).unwrap();
    collect();
    assert_eq!(here.landed().len(), landed.len(), "somebody has come back for it");
    drop(receiving);
    collect();
    assert_eq!(here.landed(), Vec::<PathBuf>::new());
}

#[test]
fn a_crash_leaves_nothing_that_the_next_start_does_not_remove() {
    let here = Host::new();
    for half in ["artifacts/.half", "roots/.half"] {
        fs::create_dir_all(here.state().join(half)).unwrap();
        fs::write(here.state().join(half).join("memory"), b"x").unwrap();
    }
    fs::create_dir(here.state().join(INCOMING)).unwrap();
    for half in ["layers/.half.qcow2", "incoming/.half"] {
        fs::write(here.state().join(half), b"x").unwrap();
    }
    ArtifactStore::open(&here.state(), &Qcow2).unwrap();
    assert_eq!((here.visible(), here.landed()), (Vec::new(), Vec::new()));
}

#[test]
fn what_is_damaged_here_does_not_leave() {
    let (there, pause, _) = packed();
    let path = pause.memory_diff.as_ref().unwrap();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(path, b"PAGES").unwrap();
    let refused = there.store.packing(&pause.manifest.id, ArchiveKind::Sandbox, serde_json::Value::Null).unwrap_err();
    assert!(matches!(refused, PackError::Integrity { source: IntegrityError::Digest { .. }, .. }), "{refused:?}");
}

#[test]
fn what_changes_while_it_is_packed_makes_no_archive() {
    let (there, pause, _) = packed();
    let packing = there.store.packing(&pause.manifest.id, ArchiveKind::Sandbox, serde_json::Value::Null).unwrap();
    let path: &Path = pause.memory_diff.as_ref().unwrap();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for content in [&b"PAGES"[..], b"pa"] {
        fs::write(path, content).unwrap();
        let refused = packing.write(std::io::sink()).unwrap_err();
        assert!(matches!(&refused, PackError::Changed { member } if member.contains("`memory.diff`")), "{refused:?}");
    }
}
