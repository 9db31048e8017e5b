//! Devices whose driver is loaded by whoever opens them first.
//!
//! A device appears in /dev when its driver is there, and some drivers are wanted only once somebody opens their device: loop
//! devices, the device mapper, vhost. The kernel's modules say which (`modules.devname`, written by depmod), and on other
//! machines `kmod static-nodes` makes them at boot.

use std::{
    io::{self, Read},
    path::{Component, Path},
};

use nix::{
    errno::Errno,
    sys::stat::{Mode, SFlag, makedev, mknod},
};

/// A kernel has a dozen.
const MAX_LIST_BYTES: u64 = 64 << 10;

/// Makes those of the running kernel. An image without modules has none; one that cannot be made is logged.
pub(super) fn make() {
    let listed = nix::sys::utsname::uname().map_err(io::Error::from).and_then(|kernel| list(&kernel.release().to_string_lossy()));
    let listed = match listed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return tracing::warn!(%error, "cannot read which devices load their drivers"),
        Ok(listed) => listed,
    };
    for node in listed.lines().filter_map(parse) {
        if let Err(error) = node.make(Path::new("/dev")) {
            tracing::warn!(%error, name = node.name, "cannot make a device that loads its driver");
        }
    }
}

fn list(release: &str) -> io::Result<String> {
    let mut text = String::new();
    let file = fs_err::File::open(format!("/lib/modules/{release}/modules.devname"))?;
    file.take(MAX_LIST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// A device below /dev.
#[derive(Debug, PartialEq, Eq)]
struct Node<'a> {
    name: &'a str,
    kind: SFlag,
    major: u64,
    minor: u64,
}

/// `module name c10:237`. Comments, and names that lead out of /dev, are no devices.
fn parse(line: &str) -> Option<Node<'_>> {
    let mut words = line.split_whitespace();
    let (_module, name, device) = (words.next()?, words.next()?, words.next()?);
    let kind = match device.chars().next()? {
        'c' => SFlag::S_IFCHR,
        'b' => SFlag::S_IFBLK,
        _ => return None,
    };
    let (major, minor) = device.get(1..)?.split_once(':')?;
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain.then_some(Node { name, kind, major: major.parse().ok()?, minor: minor.parse().ok()? })
}

impl Node<'_> {
    fn make(&self, dev: &Path) -> io::Result<()> {
        let path = dev.join(self.name);
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        match mknod(&path, self.kind, Mode::S_IRUSR | Mode::S_IWUSR, makedev(self.major, self.minor)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_nothing_leads_out() {
        let device = |name, kind, minor| Some(Node { name, kind, major: 10, minor });
        assert_eq!(parse("loop loop-control c10:237"), device("loop-control", SFlag::S_IFCHR, 237));
        assert_eq!(parse("dm_mod mapper/control c10:236"), device("mapper/control", SFlag::S_IFCHR, 236));
        assert_eq!(parse("x y b10:1"), device("y", SFlag::S_IFBLK, 1));
        for line in
            ["# Device nodes to trigger", "", "a ../etc/x c1:1", "a /etc/x c1:1", "a b p1:1", "a b c1", "a b c1:x", "a b é"]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
