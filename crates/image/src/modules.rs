//! Which kernel modules a guest needs before it has a disk, and in which order they load.
//!
//! Debian's packages carry no `modules.dep` (it is made when a kernel is installed, and ours is not), so the dependencies are
//! read where `depmod` reads them: in the `.modinfo` section of each module. What a kernel has built in is in its
//! `modules.builtin` and needs no loading.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use fs_err as fs;

/// The devices that a guest of ours may have, and what sandboxes use at once: without a package manager and without a module
/// tree in the root file system. A kernel must have these, built in or as modules.
pub(crate) const NEEDED: &[&str] =
    &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon", "ext4"];
/// Taken if the kernel has them. The first line are what the needed ones ask for by name at run time, out of the sight of
/// their dependencies; the second what containers and tunnels in a sandbox need.
pub(crate) const WELCOME: &[&str] = &[
    "crc32c_generic",
    "crc32c_intel",
    "vmgenid",
    "af_packet", //
    "overlay",
    "tun",
    "veth",
    "fuse",
];

/// No module of a cloud kernel is near this.
const MAX_MODULE_BYTES: u64 = 32 << 20;

/// Why the modules of a kernel cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The module tree cannot be read.
    #[error("cannot read the kernel's modules")]
    Read(#[source] std::io::Error),
    /// A needed module is neither there nor built in.
    #[error("cannot find the kernel module `{name}` in `{tree}`")]
    Absent {
        /// The module.
        name: String,
        /// The module tree.
        tree: PathBuf,
    },
    /// The module is packed in a way that is not known here.
    #[error("cannot unpack the kernel module `{path}`")]
    Unpack {
        /// The module's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The module has no information section.
    #[error("cannot read the dependencies of the kernel module `{name}`")]
    Malformed {
        /// The module.
        name: String,
    },
    /// A module needs itself, in the end.
    #[error("cannot order the kernel modules: `{name}` depends on itself")]
    Circle {
        /// The module.
        name: String,
    },
}

/// A module, ready to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Reads the needed and the welcome modules below `tree`, each after those it depends on.
pub(crate) fn load(tree: &Path) -> Result<Vec<Module>, ModuleError> {
    let files = index(tree).map_err(ModuleError::Read)?;
    let builtin = builtin(tree).map_err(ModuleError::Read)?;
    let mut contents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let absent = |name: &str| ModuleError::Absent { name: name.to_owned(), tree: tree.to_path_buf() };
    for name in NEEDED {
        if !files.contains_key(*name) && !builtin.contains(*name) {
            return Err(absent(name));
        }
    }
    let wanted = NEEDED.iter().chain(WELCOME).filter(|name| files.contains_key(**name)).copied();
    let order = load_order(wanted, |name| {
        if builtin.contains(name) {
            return Ok(None);
        }
        let path = files.get(name).ok_or_else(|| absent(name))?;
        let bytes = unpack(path)?;
        let depends = depends(&bytes).ok_or_else(|| ModuleError::Malformed { name: name.to_owned() })?;
        contents.insert(name.to_owned(), bytes);
        Ok(Some(depends))
    })?;
    Ok(order.into_iter().filter_map(|name| Some(Module { bytes: contents.remove(&name)?, name })).collect())
}

/// The dependencies of a module; `None` for one that is built in.
type Dependencies = Result<Option<Vec<String>>, ModuleError>;

/// Orders modules so that each comes after its dependencies, and otherwise as wanted. `depends` is asked once for
/// each module that is ordered.
fn load_order<'a>(
    wanted: impl Iterator<Item = &'a str>,
    mut depends: impl FnMut(&str) -> Dependencies,
) -> Result<Vec<String>, ModuleError> {
    let mut order = Vec::new();
    for name in wanted {
        visit(name, &mut Vec::new(), &mut order, &mut depends)?;
    }
    Ok(order)
}

/// Puts a module after its dependencies. `above` are the modules that wait for this one.
fn visit(
    name: &str,
    above: &mut Vec<String>,
    order: &mut Vec<String>,
    depends: &mut dyn FnMut(&str) -> Dependencies,
) -> Result<(), ModuleError> {
    if order.iter().any(|done| done == name) {
        return Ok(());
    }
    if above.iter().any(|waiting| waiting == name) {
        return Err(ModuleError::Circle { name: name.to_owned() });
    }
    let Some(dependencies) = depends(name)? else { return Ok(()) };
    above.push(name.to_owned());
    for dependency in &dependencies {
        visit(dependency, above, order, depends)?;
    }
    above.pop();
    order.push(name.to_owned());
    Ok(())
}

/// The one spelling of a module's name: files use dashes and underscores as they please.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module that a file holds.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, packing) = file.split_once(".ko")?;
    matches!(packing, "" | ".xz").then(|| canonical(name))
}

/// All modules of a tree by name.
fn index(tree: &Path) -> std::io::Result<HashMap<String, PathBuf>> {
    let mut found = HashMap::new();
    let mut directories = vec![tree.join("kernel")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

fn builtin(tree: &Path) -> std::io::Result<BTreeSet<String>> {
    let text = fs::read_to_string(tree.join("modules.builtin"))?;
    Ok(text.lines().filter_map(|line| module_name(Path::new(line))).collect())
}

/// The module's bytes as the kernel takes them.
fn unpack(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let failed = |source| ModuleError::Unpack { path: path.to_path_buf(), source };
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let packed = path.extension().is_some_and(|extension| extension == "xz");
    let read = if packed {
        lzma_rust2::XzReader::new(file, false).take(MAX_MODULE_BYTES).read_to_end(&mut bytes)
    } else {
        file.take(MAX_MODULE_BYTES).read_to_end(&mut bytes)
    };
    read.map_err(failed)?;
    Ok(bytes)
}

/// The names in a module's `depends` field. `None` if the bytes are not a module.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    let information = section(module, b".modinfo")?;
    let mut fields = information.split(|&byte| byte == 0).filter_map(|field| std::str::from_utf8(field).ok());
    let value = fields.find_map(|field| field.strip_prefix("depends=")).unwrap_or_default();
    Some(value.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

/// One section of a 64-bit little-endian ELF object, by name (elf(5)).
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    const HEADER_BYTES: usize = 64;
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let headers = usize::try_from(u64_at(elf, 0x28)?).ok()?;
    let (count, names) = (usize::from(u16_at(elf, 0x3c)?), usize::from(u16_at(elf, 0x3e)?));
    let content = |index: usize| {
        let header = headers.checked_add(index.checked_mul(HEADER_BYTES)?)?;
        let offset = usize::try_from(u64_at(elf, header.checked_add(0x18)?)?).ok()?;
        let size = usize::try_from(u64_at(elf, header.checked_add(0x20)?)?).ok()?;
        elf.get(offset..offset.checked_add(size)?)
    };
    let strings = content(names)?;
    for index in 0..count {
        let header = headers.checked_add(index.checked_mul(HEADER_BYTES)?)?;
        let name = strings.get(usize::try_from(u32_at(elf, header)?).ok()?..)?;
        if name.strip_prefix(wanted).is_some_and(|rest| rest.first() == Some(&0)) {
            return content(index);
        }
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest object with a `.modinfo` section.
    pub(crate) fn elf(modinfo: &[u8]) -> Vec<u8> {
        let strings = b"\0.modinfo\0";
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let information_at = bytes.len();
        bytes.extend_from_slice(modinfo);
        let strings_at = bytes.len();
        bytes.extend_from_slice(strings);
        let headers = bytes.len();
        for (name, offset, size) in [(0, 0, 0), (1, information_at, modinfo.len()), (0, strings_at, strings.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&u32::to_le_bytes(name));
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            bytes.extend_from_slice(&header);
        }
        bytes[0x28..0x30].copy_from_slice(&(headers as u64).to_le_bytes());
        bytes[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
        bytes[0x3e..0x40].copy_from_slice(&2_u16.to_le_bytes());
        bytes
    }

    /// A module tree with everything built in but what is given.
    pub(crate) fn tree(dir: &Path, modules: &[(&str, &str)]) {
        let kernel = dir.join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        for (file, depends) in modules {
            fs::write(kernel.join(file), elf(format!("license=GPL\0depends={depends}\0name=x\0").as_bytes())).unwrap();
        }
        let has = |name: &str| modules.iter().any(|(file, _)| module_name(Path::new(file)).as_deref() == Some(name));
        let rest: Vec<_> = NEEDED.iter().filter(|name| !has(name)).map(|name| format!("kernel/x/{name}.ko")).collect();
        fs::write(dir.join("modules.builtin"), rest.join("\n")).unwrap();
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                ("virtio_net.ko", "net-failover"),
                ("net_failover.ko", "failover"),
                ("failover.ko", ""),
                ("virtio-rng.ko", ""),
                ("virtio_blk.ko", "virtio_pci"),
                ("unwanted.ko", ""),
            ],
        );
        let names: Vec<_> = load(dir.path()).unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["virtio_blk", "failover", "net_failover", "virtio_net", "virtio_rng"]);
    }

    #[test]
    fn a_kernel_without_a_needed_module_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), &[]);
        fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        let error = load(dir.path()).unwrap_err();
        assert!(matches!(&error, ModuleError::Absent { name, .. } if name == "virtio_pci"), "{error}");
    }

    #[test]
    fn a_circle_ends_in_an_error() {
        let error = load_order(["a"].into_iter(), |name| Ok(Some(vec![if name == "a" { "b" } else { "a" }.to_owned()])));
        assert!(matches!(error, Err(ModuleError::Circle { .. })));
    }

    #[test]
    fn garbage_is_not_a_module() {
        assert_eq!(depends(b"\x7fELF"), None);
        let mut cut = elf(b"depends=a\0");
        cut[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(depends(&cut), None);
        for end in 0..cut.len() {
            depends(&elf(b"depends=a\0")[..end]);
        }
        assert_eq!(depends(&elf(b"depends=a,b-c\0")), Some(vec!["a".into(), "b_c".into()]));
    }
}
