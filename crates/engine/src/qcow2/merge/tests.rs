//! What QEMU reads of a merged layer, what a model says of it, and what is refused.

use std::{collections::BTreeMap, process::Command};

use proptest::prelude::*;

use super::*;
use crate::qcow2::{Format, create, inspect, rebase};

/// Two second-level tables.
const DISK: u64 = 2 * L1_ENTRY_BYTES;

fn raw(path: &Path) -> Backing {
    Backing { path: path.to_path_buf(), format: Format::Raw }
}

fn over(path: &Path) -> Backing {
    Backing { path: path.to_path_buf(), format: Format::Qcow2 }
}

/// Clusters by number, with the byte that fills them; 0 is the flag for zeros.
type Content = BTreeMap<u64, u8>;

/// A layer that holds `content`. Its refcounts are those of an empty one: no reader of ours looks at them.
fn layer(path: &Path, backing: &Backing, content: &Content) {
    create(path, backing, DISK).unwrap();
    let file = fs_err::OpenOptions::new().write(true).open(path).unwrap().into_parts().0;
    let mut end = file.metadata().unwrap().len() / CLUSTER;
    let mut tables: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (&cluster, &fill) in content {
        let (table, at) = (cluster / L2_ENTRIES as u64, usize::try_from(cluster).unwrap() % L2_ENTRIES);
        let entry = if fill == 0 { ZERO } else { (end * CLUSTER) | COPIED };
        if fill != 0 {
            file.write_all_at(&vec![fill; 1 << 16], end * CLUSTER).unwrap();
            end += 1;
        }
        tables.entry(table).or_insert_with(|| vec![0; L2_ENTRIES])[at] = entry;
    }
    for (table, entries) in tables {
        file.write_all_at(&bytes_of(&entries), end * CLUSTER).unwrap();
        file.write_all_at(&((end * CLUSTER) | COPIED).to_be_bytes(), 3 * CLUSTER + table * 8).unwrap();
        end += 1;
    }
}

fn content(path: &Path) -> Content {
    let layer = Layer::open(path).unwrap();
    let mut content = Content::new();
    for (index, base) in (0u64..2).zip([0, L2_ENTRIES as u64]) {
        for (at, cluster) in (base..).zip(layer.table(usize::try_from(index).unwrap()).unwrap().into_iter().flatten()) {
            match cluster {
                Cluster::Absent => continue,
                Cluster::Zero => content.insert(at, 0),
                Cluster::At(offset) => {
                    let mut bytes = vec![0; 1 << 16];
                    layer.read(&mut bytes, offset).unwrap();
                    assert!(bytes.iter().all(|&byte| byte == bytes[0]));
                    content.insert(at, bytes[0])
                }
            };
        }
    }
    content
}

fn tool(arguments: &[&str]) -> bool {
    let done = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    true
}

#[test]
#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn qemu_reads_what_was_merged_as_it_reads_the_chain() {
    if Command::new("qemu-io").arg("--version").output().is_err() {
        eprintln!("SKIP: qemu-io is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs_err::write(path("base"), vec![9; 40 << 20]).unwrap();
    let mut below = raw(&path("base"));
    // Data over data, zeros over data, a discard, data over zeros, parts of clusters, and the second table.
    let writes = [
        "write -P 1 0 3M,write -P 2 10M 200k,write -P 3 513M 1M",
        "write -z 1M 1M,write -P 4 10M 64k,write -P 5 700k 4k",
        "discard 2M 1M,write -P 6 1500k 100k,write -P 0 30M 1M,write -P 7 513M 12k",
    ];
    for (name, writes) in ["l1", "l2", "l3"].into_iter().zip(writes) {
        create(&path(name), &below, DISK).unwrap();
        let mut io = Command::new("qemu-io");
        io.args(["-d", "unmap"]);
        for write in writes.split(',') {
            io.args(["-c", write]);
        }
        let done = io.arg(path(name)).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        below = over(&path(name));
    }
    let layers = ["l1", "l2", "l3"].map(path);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    for first in 0..2 {
        let out = format!("merged-{first}");
        let backing = if first == 0 { raw(&path("base")) } else { over(&path("l1")) };
        let merged = merge(&layers[first..], &backing, &path(&out), &|| true).unwrap();
        tool(&["check", "-q", &text(&out)]);
        tool(&["compare", "-q", &text("l3"), &text(&out)]);
        let bytes = fs_err::metadata(path(&out)).unwrap().len();
        assert!(merged.data_bytes < 6 << 20 && bytes < merged.data_bytes + 16 * CLUSTER, "{merged:?} {bytes}");
    }
    // What lay over the chain lies over the merged layer.
    create(&path("top"), &over(&path("l3")), DISK).unwrap();
    rebase(&path("top"), &over(&path("merged-1"))).unwrap();
    fs_err::remove_file(path("l3")).unwrap();
    tool(&["check", "-q", &text("top")]);
    tool(&["compare", "-q", &text("top"), &text("merged-0")]);
}

#[test]
fn a_layer_is_put_over_another_and_nothing_else_of_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let held = Content::from([(3, 1), (9000, 0)]);
    layer(&path, &over(Path::new("/state/layers/aaaa.qcow2")), &held);
    for name in ["/state/layers/bbbb.qcow2", "/s/c.qcow2", "/state/of/a/longer/name/dddd.qcow2"] {
        rebase(&path, &over(Path::new(name))).unwrap();
        assert_eq!(inspect(&path).unwrap().backing.unwrap().path, Path::new(name));
        assert_eq!(content(&path), held);
    }
    rebase(&path, &raw(Path::new("/x"))).unwrap_err();
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    layer(&path("a"), &raw(Path::new("/base")), &Content::from([(1, 1)]));
    create(&path("small"), &over(&path("a")), 1 << 20).unwrap();
    let merged = |layers: &[PathBuf], goes_on: bool| {
        let out = path(&name());
        merge(layers, &raw(Path::new("/base")), &out, &|| goes_on)
    };
    assert!(matches!(merged(&[path("a"), path("small")], true), Err(MergeError::Size { .. })));
    assert!(matches!(merged(&[path("missing")], true), Err(MergeError::Layer(InspectError::Read { .. }))));
    assert!(matches!(merged(&[path("a")], false), Err(MergeError::Stopped)));
    // Every cluster is the same one.
    layer(&path("b"), &raw(Path::new("/base")), &Content::from([(1, 1)]));
    let file = fs_err::OpenOptions::new().write(true).open(path("b")).unwrap().into_parts().0;
    let table = file.metadata().unwrap().len() / CLUSTER - 1;
    file.write_all_at(&bytes_of(&vec![(table - 1) * CLUSTER; L2_ENTRIES]), table * CLUSTER).unwrap();
    assert!(matches!(merged(&[path("b")], true), Err(MergeError::Shared)));
    for (at, bytes) in [(20usize, [0, 0, 0, 12]), (32, [0, 0, 0, 1]), (60, [0, 0, 0, 1]), (76, [0, 0, 0, 4])] {
        layer(&path("c"), &raw(Path::new("/base")), &Content::from([(1, 1)]));
        let mut whole = fs_err::read(path("c")).unwrap();
        whole[at..at + 4].copy_from_slice(&bytes);
        fs_err::write(path("c"), whole).unwrap();
        assert!(matches!(merged(&[path("c")], true), Err(MergeError::Layer(InspectError::Malformed { .. }))), "{at}");
        fs_err::remove_file(path("c")).unwrap();
    }
}

/// A name that was not used yet.
fn name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("out-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_topmost_layer_that_has_a_cluster_tells(
        layers in proptest::collection::vec(proptest::collection::btree_map(prop_oneof![0u64..6, 8190u64..8196], 0u8..4, 0..8), 1..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..layers.len()).map(|n| dir.path().join(n.to_string())).collect();
        let mut expected = Content::new();
        for (path, held) in paths.iter().zip(&layers) {
            layer(path, &raw(Path::new("/base")), held);
            expected.extend(held);
        }
        let out = dir.path().join("out");
        merge(&paths, &raw(Path::new("/base")), &out, &|| true).unwrap();
        prop_assert_eq!(content(&out), expected);
    }

    #[test]
    fn a_hostile_layer_is_refused_or_merged_within_bounds(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        in_tables in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        layer(&path, &raw(Path::new("/base")), &Content::from([(0, 1), (1, 0), (8192, 2)]));
        let mut bytes = fs_err::read(&path).unwrap();
        let places: Vec<usize> = if in_tables {
            let tables = bytes.len() - (3 << 16);
            (3 << 16..(3 << 16) + 16).chain(tables..tables + 64).collect()
        } else {
            (0..160).collect()
        };
        for (place, value) in changes {
            bytes[places[place.index(places.len())]] = value;
        }
        fs_err::write(&path, &bytes).unwrap();
        let out = dir.path().join("out");
        // A disk of many terabytes has many tables, and each is looked at.
        let looked = std::cell::Cell::new(0);
        let goes_on = || { looked.set(looked.get() + 1); looked.get() < 1000 };
        if let Ok(merged) = merge(&[path], &raw(Path::new("/base")), &out, &goes_on) {
            prop_assert!(merged.data_bytes <= bytes.len() as u64 + CLUSTER);
        }
    }
}
