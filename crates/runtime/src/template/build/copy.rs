//! `COPY`: from the archive that a client brought to one that a guest can unpack as it is.
//!
//! The archive holds what the client's pattern matched, by paths from its context. Where each file goes follows Docker: of a
//! directory that was matched, the contents are copied and merged with what is there; a file goes into the destination when that is
//! a directory, ends with a slash or gets several, and becomes it otherwise.
//!
//! An archive is a stranger's. Nothing of it is unpacked on the host: it is read twice, and what is written is made of checked
//! paths, with owners and modes of ours.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, Read, Seek},
    path::{Component, Path, PathBuf},
};

use fs_err as fs;

use super::gap::{self, Guarded};

/// Files of one archive. The largest contexts that people build with, `node_modules` and all, have some hundred thousand.
const MAX_ENTRIES: usize = 1_000_000;

/// `PATH_MAX` of Linux.
const MAX_PATH_BYTES: usize = 4096;

/// Mode of directories that an archive implies and does not have.
const DIRECTORY_MODE: u32 = 0o755;

/// Why files cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// No digest in the request.
    #[error("the step has no files: `filesHash` is missing")]
    NoHash,
    /// The digest is not one.
    #[error("the step names no files")]
    Hash(#[source] crate::storage::uploads::FilesError),
    /// They were not uploaded.
    #[error("the files were not uploaded, or too long ago: upload them and build again")]
    Absent,
    /// It is no archive.
    #[error("the uploaded files are not a tar archive")]
    Archive(#[source] io::Error),
    /// A path leads out of the archive.
    #[error("the archive has a file at `{0}`, which is not below it")]
    Path(String),
    /// Neither a file, a directory nor a link.
    #[error("the archive has something at `{0}` that is no file, directory or link")]
    Kind(String),
    /// A path goes through a link.
    #[error("the archive has a file at `{0}`, which is behind a link")]
    BehindLink(String),
    /// A hard link to something else.
    #[error("the archive has a link at `{0}` to a file that is not in it")]
    Link(String),
    /// Nothing in it is what was to be copied.
    #[error("no file in the archive matches")]
    Nothing,
    /// Too much.
    #[error("the archive has more than {what}")]
    TooMuch {
        /// Of what.
        what: String,
    },
    /// The other archive cannot be written.
    #[error("cannot write files for the guest")]
    Write(#[source] io::Error),
}

/// Where the files of an archive go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    /// Absolute.
    pub(super) dest: PathBuf,
    /// Whether that is a directory, which files go into.
    pub(super) into: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Replaces every mode.
    pub(super) mode: Option<u32>,
}

/// An archive that was looked at.
#[derive(Debug)]
pub(super) struct Survey {
    archive: fs::File,
    /// Components of a path that belong to the pattern.
    depth: usize,
    /// What was matched, and whether it is a directory.
    roots: BTreeMap<PathBuf, bool>,
}

/// Looks at all of an archive that may unpack to `limit` bytes.
pub(super) fn survey(archive: fs::File, src: &str, limit: u64) -> Result<Survey, CopyError> {
    let mut survey = Survey { archive, depth: depth(src), roots: BTreeMap::new() };
    let mut links: HashSet<PathBuf> = HashSet::new();
    let mut count = 0;
    let mut bytes = 0_u64;
    let mut roots = BTreeMap::new();
    survey.each(|entry, path| {
        count += 1;
        bytes = bytes.saturating_add(entry.size());
        if count > MAX_ENTRIES || bytes > limit {
            let what = if bytes > limit { format!("{} MiB", limit >> 20) } else { format!("{MAX_ENTRIES} files") };
            return Err(CopyError::TooMuch { what });
        }
        if path.ancestors().skip(1).any(|above| links.contains(above)) {
            return Err(CopyError::BehindLink(path.display().to_string()));
        }
        let kind = entry.header().entry_type();
        if kind.is_symlink() {
            links.insert(path.to_owned());
        }
        if let Some(root) = root(path, survey.depth) {
            let deeper = path.components().count() > survey.depth;
            *roots.entry(root).or_insert(false) |= deeper || kind.is_dir();
        }
        Ok(())
    })?;
    if roots.is_empty() {
        return Err(CopyError::Nothing);
    }
    survey.roots = roots;
    Ok(survey)
}

/// How many components of a path the pattern stands for. A pattern for any depth stands for the directory that it begins with.
fn depth(src: &str) -> usize {
    let parts: Vec<&str> = src.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let mut depth = Vec::new();
    for part in parts {
        match part {
            "**" => break,
            ".." => drop(depth.pop()),
            part => depth.push(part),
        }
    }
    depth.len()
}

fn root(path: &Path, depth: usize) -> Option<PathBuf> {
    let root: PathBuf = path.components().take(depth).collect();
    (root.components().count() == depth).then_some(root)
}

impl Survey {
    /// Whether the destination must be a directory, whatever is there.
    pub(super) fn wants_directory(&self, dest: &str) -> bool {
        let named = dest.ends_with('/') || dest == "." || dest.ends_with("/.");
        named || self.roots.len() > 1 || self.roots.values().any(|is_dir| *is_dir)
    }

    /// Writes the archive for the guest to `to`: paths from the root directory, owners as numbers.
    pub(super) fn rewrite(&self, to: &mut std::fs::File, placement: &Placement) -> Result<(), CopyError> {
        let mut builder = tar::Builder::new(to);
        let mut directories: HashSet<PathBuf> = HashSet::new();
        let mut written: HashSet<PathBuf> = HashSet::new();
        self.each(|mut entry, path| {
            let Some(target) = self.target(path, placement) else { return Ok(()) };
            let at = target.path();
            if at.components().next().is_none() {
                return Ok(());
            }
            for above in implied(&at, &target.base) {
                if directories.insert(above.clone()) {
                    let mut header = header(tar::EntryType::Directory, placement.mode.unwrap_or(DIRECTORY_MODE), placement);
                    builder.append_data(&mut header, &above, io::empty()).map_err(CopyError::Write)?;
                }
            }
            let found = entry.header().clone();
            let mode = placement.mode.or_else(|| found.mode().ok()).unwrap_or(DIRECTORY_MODE) & 0o7777;
            let kind = found.entry_type();
            let mut header = header(kind, mode, placement);
            header.set_mtime(found.mtime().unwrap_or_default());
            if kind.is_dir() {
                if directories.insert(at.clone()) {
                    builder.append_data(&mut header, &at, io::empty()).map_err(CopyError::Write)?;
                }
                return Ok(());
            }
            let link = entry.link_name().map_err(CopyError::Archive)?.map(std::borrow::Cow::into_owned);
            if kind.is_symlink() {
                let to = link.ok_or_else(|| CopyError::Link(path.display().to_string()))?;
                builder.append_link(&mut header, &at, to).map_err(CopyError::Write)?;
            } else if kind.is_hard_link() {
                let to = link.and_then(|to| clean(&to)).and_then(|to| self.target(&to, placement)).map(|to| to.path());
                let to = to.filter(|to| written.contains(to)).ok_or_else(|| CopyError::Link(path.display().to_string()))?;
                builder.append_link(&mut header, &at, to).map_err(CopyError::Write)?;
            } else {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(entry.size());
                builder.append_data(&mut header, &at, &mut entry).map_err(CopyError::Write)?;
            }
            written.insert(at);
            Ok(())
        })?;
        builder.finish().map_err(CopyError::Write)
    }

    /// Where a file of the archive goes, without the leading slash; `None` if it was not matched.
    fn target(&self, path: &Path, placement: &Placement) -> Option<Target> {
        let root = root(path, self.depth)?;
        let is_dir = *self.roots.get(&root)?;
        let dest = placement.dest.strip_prefix("/").unwrap_or(&placement.dest);
        let base = match root.file_name() {
            Some(name) if !is_dir && placement.into => dest.join(name),
            _ => dest.to_owned(),
        };
        let rest = path.components().skip(self.depth).collect();
        Some(Target { base, rest })
    }

    /// Reads the archive from its beginning, and checks each path and kind.
    fn each(
        &self,
        mut work: impl FnMut(tar::Entry<'_, Guarded<Box<dyn Read + '_>>>, &Path) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let mut file = self.archive.file();
        file.rewind().map_err(CopyError::Archive)?;
        let mut magic = [0; 2];
        let read = file.read(&mut magic).map_err(CopyError::Archive)?;
        file.rewind().map_err(CopyError::Archive)?;
        let plain: Box<dyn Read + '_> = if read == 2 && magic == [0x1f, 0x8b] {
            Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(file)))
        } else {
            Box::new(io::BufReader::new(file))
        };
        let (plain, allowance) = gap::guard(plain);
        let mut archive = tar::Archive::new(plain);
        for entry in archive.entries().map_err(CopyError::Archive)? {
            let entry = entry.map_err(CopyError::Archive)?;
            let path = entry.path().map_err(CopyError::Archive)?.into_owned();
            let shown = || path.to_string_lossy().chars().take(200).collect::<String>();
            let kind = entry.header().entry_type();
            if matches!(kind, tar::EntryType::XGlobalHeader) {
                // What it says of all files is not needed, and it is not given more room than what is said of one.
                continue;
            }
            let stored = entry.header().entry_size().map_err(CopyError::Archive)?;
            allowance.file(stored.max(entry.size()));
            let clean = clean(&path).ok_or_else(|| CopyError::Path(shown()))?;
            let known = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link() || kind.is_gnu_sparse();
            if !(known || kind.is_contiguous()) {
                return Err(CopyError::Kind(shown()));
            }
            work(entry, &clean)?;
        }
        Ok(())
    }
}

/// Where a file goes: what of the destination is there, and what is below it.
struct Target {
    base: PathBuf,
    rest: PathBuf,
}

impl Target {
    fn path(&self) -> PathBuf {
        self.base.components().chain(self.rest.components()).collect()
    }
}

/// The directories between `base`, which the guest has made, and `path`.
fn implied(path: &Path, base: &Path) -> Vec<PathBuf> {
    let mut above: Vec<PathBuf> =
        path.ancestors().skip(1).take_while(|above| *above != base && above.starts_with(base)).map(Path::to_owned).collect();
    above.reverse();
    above
}

fn header(kind: tar::EntryType, mode: u32, placement: &Placement) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(mode);
    header.set_uid(placement.uid.into());
    header.set_gid(placement.gid.into());
    header
}

/// A path below the archive's root, without anything that leads elsewhere.
fn clean(path: &Path) -> Option<PathBuf> {
    if path.as_os_str().len() > MAX_PATH_BYTES {
        return None;
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 1 << 20;

    enum Member<'a> {
        File(&'a str),
        Dir(&'a str),
        Symlink(&'a str, &'a str),
        Hardlink(&'a str, &'a str),
        Device(&'a str),
    }

    fn archive(members: &[Member<'_>], gzip: bool) -> fs::File {
        let mut builder = tar::Builder::new(Vec::new());
        for member in members {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(0);
            let raw = |header: &mut tar::Header, path: &str| {
                // Past the crate's own checks: a hostile archive was not written by it.
                header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
            };
            match member {
                Member::File(path) => {
                    header.set_size(4);
                    raw(&mut header, path);
                    builder.append(&header, &b"data"[..]).unwrap();
                }
                Member::Dir(path) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    raw(&mut header, path);
                    builder.append(&header, io::empty()).unwrap();
                }
                Member::Symlink(path, to) | Member::Hardlink(path, to) => {
                    let symlink = matches!(member, Member::Symlink(..));
                    header.set_entry_type(if symlink { tar::EntryType::Symlink } else { tar::EntryType::Link });
                    header.set_link_name(to).unwrap();
                    raw(&mut header, path);
                    builder.append(&header, io::empty()).unwrap();
                }
                Member::Device(path) => {
                    header.set_entry_type(tar::EntryType::Char);
                    raw(&mut header, path);
                    builder.append(&header, io::empty()).unwrap();
                }
            }
        }
        let plain = builder.into_inner().unwrap();
        let bytes = if gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&plain).unwrap();
            encoder.finish().unwrap()
        } else {
            plain
        };
        stored(&bytes)
    }

    fn stored(bytes: &[u8]) -> fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        fs::File::from_parts(file, "archive")
    }

    fn placed(survey: &Survey, dest: &str, into: bool) -> Vec<String> {
        let mut to = tempfile::tempfile().unwrap();
        let placement = Placement { dest: dest.into(), into, uid: 1000, gid: 1001, mode: None };
        survey.rewrite(&mut to, &placement).unwrap();
        to.rewind().unwrap();
        let mut archive = tar::Archive::new(to);
        let shown = |entry: io::Result<tar::Entry<'_, std::fs::File>>| {
            let entry = entry.unwrap();
            assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (1000, 1001));
            let link = entry.link_name().unwrap().map(|to| format!(" -> {}", to.display())).unwrap_or_default();
            format!("{}{link}", entry.path().unwrap().display())
        };
        archive.entries().unwrap().map(shown).collect()
    }

    #[test]
    fn files_go_where_docker_puts_them() {
        use Member::{Dir, File, Hardlink, Symlink};
        let several = archive(&[File("folder/a"), Symlink("folder/l", "a"), Hardlink("folder/h", "folder/a")], true);
        let survey_of =
            |file: &fs::File, src: &str| survey(fs::File::from_parts(file.file().try_clone().unwrap(), "a"), src, LIMIT).unwrap();
        let found = survey_of(&several, "folder/*");
        assert!(found.wants_directory("folder"));
        assert_eq!(placed(&found, "/d", true), ["d/a", "d/l -> a", "d/h -> d/a"]);

        let one = archive(&[File("folder/a")], false);
        let found = survey_of(&one, "./folder/a");
        assert!(!found.wants_directory("x") && found.wants_directory("x/") && found.wants_directory("."));
        assert_eq!(placed(&found, "/d/x", false), ["d/x"]);
        assert_eq!(placed(&found, "/d", true), ["d/a"]);

        let whole = archive(&[Dir("folder/"), Dir("folder/sub/"), File("folder/sub/b"), File("folder/a")], false);
        let found = survey_of(&whole, "folder");
        assert!(found.wants_directory("x"));
        assert_eq!(placed(&found, "/x", true), ["x", "x/sub", "x/sub/b", "x/a"]);
        assert_eq!(placed(&survey_of(&whole, "."), "/x", true), ["x/folder", "x/folder/sub", "x/folder/sub/b", "x/folder/a"]);

        let implied = archive(&[File("folder/sub/deep/b")], false);
        assert_eq!(placed(&survey_of(&implied, "folder/**/*"), "/x", true), ["x/sub", "x/sub/deep", "x/sub/deep/b"]);
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        use Member::{Device, File, Hardlink, Symlink};
        let refused = |members: &[Member<'_>]| {
            let survey = survey(archive(members, false), ".", LIMIT)?;
            let placement = Placement { dest: "/x".into(), into: true, uid: 0, gid: 0, mode: None };
            survey.rewrite(&mut tempfile::tempfile().unwrap(), &placement)
        };
        assert!(matches!(refused(&[File("../etc/passwd")]), Err(CopyError::Path(_))));
        assert!(matches!(refused(&[File("/etc/passwd")]), Err(CopyError::Path(_))));
        assert!(matches!(refused(&[Symlink("a", "/etc"), File("a/passwd")]), Err(CopyError::BehindLink(_))));
        assert!(matches!(refused(&[Hardlink("a", "../../etc/passwd")]), Err(CopyError::Link(_))));
        assert!(matches!(refused(&[Hardlink("a", "b")]), Err(CopyError::Link(_))));
        assert!(matches!(refused(&[Device("null")]), Err(CopyError::Kind(_))));
        assert!(matches!(survey(archive(&[File("a")], false), "b/c", LIMIT), Err(CopyError::Nothing)));
        assert!(matches!(survey(archive(&[File("a")], false), ".", 1), Err(CopyError::TooMuch { .. })));
        assert!(survey(stored(b"no archive at all, by any means"), ".", LIMIT).is_err());
    }

    #[test]
    fn what_is_said_of_a_file_is_bounded() {
        let named = |bytes: usize, kind: tar::EntryType| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes as u64);
            header.set_path("././@LongLink").unwrap();
            header.set_cksum();
            builder.append(&header, &*vec![b'n'; bytes]).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            builder.append_data(&mut header, "a", &b"data"[..]).unwrap();
            let bytes = builder.into_inner().unwrap();
            survey(stored(&bytes), ".", u64::MAX)
        };
        use tar::EntryType as T;
        assert!(named(4000, T::GNULongName).is_ok());
        for kind in [T::GNULongName, T::GNULongLink, T::XHeader, T::XGlobalHeader] {
            assert!(matches!(named(1 << 20, kind), Err(CopyError::Archive(_))), "{kind:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_stumble(bytes in proptest::collection::vec(any::<u8>(), 0..2048), src in "[a-z*./]{0,12}") {
            if let Ok(survey) = survey(stored(&bytes), &src, LIMIT) {
                let placement = Placement { dest: "/x".into(), into: true, uid: 0, gid: 0, mode: Some(0o600) };
                drop(survey.rewrite(&mut tempfile::tempfile().unwrap(), &placement));
            }
        }
    }
}
