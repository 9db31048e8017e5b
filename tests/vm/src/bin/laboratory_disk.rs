//! Makes a cache directory whose root file system holds all that a sandbox needs to be a host of the product.
//!
//! `laboratory_disk CACHE NAME=PATH...`: the new directory, and files and directories that go in beside QEMU and the guests' kernel.
//! In the root file system are then `/host/lab.tar`, to be unpacked at `/`, and `/host/rootfs.ext4`, the root file system of the
//! inner guests, whose entry in the inner cache is named by `/lab/root-entry`. Sent to a running sandbox instead, a gigabyte takes
//! minutes through an emulated network. `cargo xtask nested` builds its laboratory from it.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use firkin_engine::qemu::probe::Requested;
use firkin_vm_tests::{
    engine_qemu::{GuestFiles, cache},
    laboratory::pack,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let made = PathBuf::from(arguments.next().context("no cache directory was named")?);
    let lab = tempfile::tempdir().context("cannot make a directory")?;
    for argument in arguments {
        let (name, path) = argument.split_once('=').with_context(|| format!("`{argument}` is not NAME=PATH"))?;
        symlink(fs_err::canonicalize(path)?, lab.path().join(name))?;
    }
    let cache = cache().await;
    let (files, kernel) = GuestFiles::of_this_host(&cache).await;
    let qemu = files.probe(Requested::Tcg, None).await.context("QEMU does not run here")?.program().to_owned();

    let kernel = entry(cache.dir(), &kernel.kernel)?;
    copy(&cache.dir().join(&kernel), &made.join(&kernel))?;
    let root = entry(cache.dir(), &files.rootfs)?;
    copy(&cache.dir().join(&root), &made.join(&root))?;

    let inner = lab.path().join("cache");
    fs_err::create_dir_all(inner.join(kernel.parent().context("an entry is of a kind")?))?;
    symlink(cache.dir().join(&kernel), inner.join(&kernel))?;
    fs_err::create_dir_all(inner.join(&root))?;
    let disk = files.rootfs.file_name().context("a root file system has a name")?;
    for file in fs_err::read_dir(cache.dir().join(&root))? {
        let file = file?;
        if file.file_name() != disk {
            symlink(file.path(), inner.join(&root).join(file.file_name()))?;
        }
    }
    fs_err::write(lab.path().join("root-entry"), root.join(disk).as_os_str().as_encoded_bytes())?;
    let archive = tempfile::NamedTempFile::new().context("cannot make a file")?;
    pack(&qemu, lab.path(), archive.reopen().context("cannot open the archive")?)?;
    put(&made.join(&root).join(disk), &[(&files.rootfs, "rootfs.ext4"), (archive.path(), "lab.tar")])
}

/// The entry that a file of the cache is in, as seen from the cache.
fn entry(cache: &Path, file: &Path) -> anyhow::Result<PathBuf> {
    let entry = file.parent().context("a file of the cache is in an entry")?;
    Ok(entry.strip_prefix(cache).context("an entry is in the cache")?.to_owned())
}

/// Copies a directory, holes as holes.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(to.parent().context("an entry is in a directory")?)?;
    run(Command::new("cp").args(["--archive", "--sparse=always"]).arg(from).arg(to))
}

/// Puts files into the directory `/host` of a file system that nobody uses.
fn put(disk: &Path, files: &[(&Path, &str)]) -> anyhow::Result<()> {
    let mode = |mode| fs_err::set_permissions(disk, std::fs::Permissions::from_mode(mode));
    mode(0o600)?;
    let writes = files.iter().map(|(path, name)| format!("write \"{}\" /host/{name}\n", path.display()));
    let commands = tempfile::NamedTempFile::new().context("cannot make a file")?;
    fs_err::write(commands.path(), format!("mkdir /host\n{}", writes.collect::<String>()))?;
    // It says what it does, and nothing of failures by its status.
    run(Command::new("debugfs").arg("-w").arg("-f").arg(commands.path()).arg(disk).stdout(std::process::Stdio::null()))?;
    mode(0o400)?;
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
