//! Where what an archive carries is kept until all of it is there: by digest, and each content only once it was found to have its own.
//!
//! What breaks off within a content stays beside that (`<digest>.part`), up to a whole page, and is gone on with. Nothing of it is believed: all
//! of it is hashed again with what follows, and goes if the whole is not right.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

use super::{super::manifest::MemberIntegrity, CHUNK_BYTES, header::CarriedRoot, sparse::expand};

/// The directory, below that of the state.
pub(in crate::artifact) const INCOMING: &str = "incoming";

/// What is not written where it is all zeros, and where what broke off is gone on with.
const PAGE: usize = 4096;

/// What the name of a content ends with that is not all there.
const PART: &str = ".part";

/// What has arrived. Whoever has it is the only one who takes an archive in.
#[derive(Debug)]
pub(in crate::artifact) struct Landing {
    pub(super) dir: PathBuf,
}

impl Landing {
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join(INCOMING);
        crate::ground::private::private_dir(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(digest)
    }

    /// Whether it has arrived: what has its name was found to have that digest, and is durable.
    pub(super) fn has(&self, content: &MemberIntegrity) -> bool {
        fs::symlink_metadata(self.path(&content.blake3)).is_ok_and(|found| found.is_file() && found.len() == content.bytes)
    }

    fn part(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}{PART}"))
    }

    /// How many bytes of a content arrived before it broke off. Whether they are right shows when all are there.
    pub(super) fn begun(&self, content: &MemberIntegrity) -> u64 {
        let found = fs::symlink_metadata(self.part(&content.blake3));
        let bytes = found.map_or(0, |found| if found.is_file() { found.len() } else { 0 });
        bytes.min(content.bytes) / PAGE as u64 * PAGE as u64
    }

    /// Removes what another archive has left, so that it holds what one needs at most.
    pub(super) fn keep_only(&self, digests: &HashSet<&str>) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name.to_str().map(|name| name.strip_suffix(PART).unwrap_or(name));
            if !digest.is_some_and(|digest| digests.contains(digest)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes in what `from` has to give after the first `begun` bytes, which are here, and keeps it if all has the digest of `content`. What it was
    /// found to be. What breaks off stays for the next time; what cannot be written, or is another content, does not.
    pub(super) fn write(
        &self,
        content: &MemberIntegrity,
        begun: u64,
        from: &mut impl Read,
    ) -> Result<MemberIntegrity, LandError> {
        let path = self.part(&content.blake3);
        let written = self.write_part((&path, content), begun, from);
        let is_broken_off = matches!(written, Err(LandError::From(_)));
        if !is_broken_off && !written.as_ref().is_ok_and(|found| found == content) {
            fs::remove_file(&path).map_err(|source| LandError::File { path, source })?;
        }
        written
    }

    fn write_part(
        &self,
        (path, content): (&Path, &MemberIntegrity),
        begun: u64,
        from: &mut impl Read,
    ) -> Result<MemberIntegrity, LandError> {
        let failed = |source| LandError::File { path: path.to_owned(), source };
        let part = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let part = part.map_err(failed)?;
        if part.metadata().map_err(failed)?.len() != begun {
            part.set_len(begun).map_err(failed)?;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(BufReader::with_capacity(CHUNK_BYTES, part.file())).map_err(failed)?;
        let found = go_on(from, (begun, content.bytes), hasher, Some(part.file())).map_err(|error| match error {
            LandError::File { source, .. } => failed(source),
            LandError::From(source) => LandError::From(source),
        })?;
        if found == *content {
            part.sync_all().map_err(failed)?;
            fs::rename(path, self.path(&content.blake3)).map_err(failed)?;
        }
        Ok(found)
    }

    /// Removes what was left and not come back for. Whoever calls this has seen to it that nobody takes an archive in.
    pub(in crate::artifact) fn expire(state_dir: &Path, older_than: Duration) -> io::Result<()> {
        Self::expired(state_dir, older_than)?.into_iter().try_for_each(fs::remove_file)
    }

    /// What was left and not come back for by now.
    pub(in crate::artifact) fn expired(state_dir: &Path, older_than: Duration) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(state_dir.join(INCOMING)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut expired = Vec::new();
        for entry in entries {
            let entry = entry?;
            let modified = match entry.metadata() {
                // Whoever takes an archive in has just used it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?.modified()?,
            };
            // One from the future is as old as it may be: clocks are set.
            if SystemTime::now().duration_since(modified).is_ok_and(|age| age > older_than) {
                expired.push(entry.path());
            }
        }
        Ok(expired)
    }
}

/// Why something did not land.
#[derive(Debug)]
pub(super) enum LandError {
    /// It could not be read.
    From(io::Error),
    /// It could not be written.
    File { path: PathBuf, source: io::Error },
}

impl From<io::Error> for LandError {
    fn from(source: io::Error) -> Self {
        Self::From(source)
    }
}

/// What has landed, and how often it is still needed.
#[derive(Debug)]
pub(super) struct Stock {
    pub(super) landing: Landing,
    pub(super) uses: HashMap<String, usize>,
}

impl Stock {
    /// Puts a content where it belongs, at `to`, which must not exist: itself, or a copy while others need it.
    pub(super) fn take(&mut self, content: &MemberIntegrity, to: &Path) -> io::Result<()> {
        let from = self.landing.path(&content.blake3);
        let left = self.uses.get_mut(&content.blake3).expect("only what was counted is taken");
        *left -= 1;
        if *left == 0 {
            return fs::rename(from, to);
        }
        let copied = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        match copy(&mut fs::File::open(from)?, content.bytes, Some(copied.file())) {
            Ok(found) if found == *content => Ok(()),
            Ok(_) => Err(io::Error::other("it has changed since it arrived")),
            Err(LandError::From(source) | LandError::File { source, .. }) => Err(source),
        }
    }
}

impl Stock {
    /// Makes a root image of its content, at `to`, which must not exist.
    pub(super) fn expand(&mut self, root: &CarriedRoot, to: &Path) -> io::Result<()> {
        let packed = to.with_extension("packed");
        self.take(&root.content, &packed)?;
        let image = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        expand(&mut BufReader::with_capacity(CHUNK_BYTES, fs::File::open(&packed)?), root.size, image.file())?;
        fs::remove_file(&packed)
    }
}

/// Reads `bytes` and digests them; writes them to `into`, if that is given, with a hole for each page of zeros.
pub(super) fn copy(from: &mut impl Read, bytes: u64, into: Option<&File>) -> Result<MemberIntegrity, LandError> {
    go_on(from, (0, bytes), blake3::Hasher::new(), into)
}

/// As [`copy`], from the byte `at` on, which begins a page, with what was digested until then. Where it breaks off, what was read is written.
fn go_on(
    from: &mut impl Read,
    (mut at, bytes): (u64, u64),
    mut hasher: blake3::Hasher,
    into: Option<&File>,
) -> Result<MemberIntegrity, LandError> {
    let file = |source| LandError::File { path: PathBuf::from(INCOMING), source };
    let mut buffer = vec![0; CHUNK_BYTES];
    while at < bytes {
        let most = CHUNK_BYTES.min(usize::try_from(bytes - at).unwrap_or(CHUNK_BYTES));
        let (read, broken) = fill(from, &mut buffer[..most]);
        hasher.update(&buffer[..read]);
        if let Some(into) = into {
            write_pages(into, &buffer[..read], at).map_err(file)?;
        }
        at += read as u64;
        if let Some(source) = broken {
            if let Some(into) = into {
                into.set_len(at).map_err(file)?;
            }
            return Err(LandError::From(source));
        }
    }
    if let Some(into) = into {
        into.set_len(bytes).map_err(file)?;
    }
    Ok(MemberIntegrity { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

/// Reads until `buffer` is full: how much, and why no more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => return (filled, Some(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

/// Writes `buffer`, which begins at a page, without the pages that are zeros.
fn write_pages(into: &File, buffer: &[u8], at: u64) -> io::Result<()> {
    let is_hole = |page: &[u8]| page.iter().all(|&byte| byte == 0);
    let mut start = 0;
    while start < buffer.len() {
        let mut end = start;
        while end < buffer.len() && !is_hole(&buffer[end..buffer.len().min(end + PAGE)]) {
            end = buffer.len().min(end + PAGE);
        }
        if end > start {
            into.write_all_at(&buffer[start..end], at + start as u64)?;
            start = end;
        } else {
            start += PAGE;
        }
    }
    Ok(())
}
