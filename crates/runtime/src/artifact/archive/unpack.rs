//! Unpacking: an archive of a stranger's becomes an artifact of this host's, whole or not at all.
//!
//! ```text
//!   survey    header read and checked, what is here already told apart      nothing written
//!   receive   an archive with that header begins to come
//!   unpack    contents land by digest                                       incoming/<blake3>
//!             root images, layers over local paths, base, artifact          each by a rename, the artifact last
//! ```
//!
//! Whoever is interrupted leaves what has landed, which the next try of the same archive uses, and at most root images, layers and a base
//! that nobody names, which collection removes.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use firkin_engine::{Below, DiskError};
use fs_err as fs;
use serde::Deserialize;

use super::{
    super::{
        Artifact, ArtifactKind, ArtifactStore, Pin, PinName, PublishError, ROOTS, SEALED_FORMAT, Secrecy,
        manifest::MemberIntegrity, member, publish::sync_dir,
    },
    entries::{Entries, Found},
    header::{
        ARCHIVE_FORMAT, ArchiveHeader, Blob, CarriedArtifact, CarriedLayer, CarriedRoot, HEADER, MAX_HEADER_BYTES, Under,
        form_called, rest_of,
    },
    landing::{LandError, Landing, Stock, copy},
};
use crate::{
    artifact::IntegrityError,
    ground::{
        ids::{ArtifactId, LayerId},
        private::private_dir,
    },
};

/// Why an archive was not taken in. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// What was read is none.
    #[error("this is not an archive of Firkin, or it is damaged at its beginning")]
    NotAnArchive(#[source] io::Error),
    /// Its header is longer than any is.
    #[error("the header of the archive has {bytes} bytes, at most {MAX_HEADER_BYTES} are read")]
    HeaderTooLong {
        /// What it says.
        bytes: u64,
    },
    /// Its header is none.
    #[error("the header of the archive is not valid")]
    Header(#[source] serde_json::Error),
    /// It was written by a newer version.
    #[error("the archive has format version {found}, this version reads up to {ARCHIVE_FORMAT}")]
    Format {
        /// Its version.
        found: u32,
    },
    /// Its artifact is encrypted under a key that is not in it.
    #[error("snapshot artifact `{artifact}` of the archive is encrypted under another server's key")]
    Sealed {
        /// Which one.
        artifact: ArtifactId,
    },
    /// It says things that cannot be true together.
    #[error("the archive contradicts itself: {problem}")]
    Contradiction {
        /// What.
        problem: &'static str,
    },
    /// Something else is in it than its header says.
    #[error("the archive has an entry `{found}` where {expected} is due")]
    Entry {
        /// As the archive calls it.
        found: String,
        /// What is due.
        expected: String,
    },
    /// It ends too early, cannot be read any further, or is damaged so that nothing can be unpacked.
    #[error("cannot read {at} from the archive: it is damaged or cut off")]
    Read {
        /// What was read.
        at: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A member is not what the header says.
    #[error("{of} in the archive is damaged")]
    Damaged {
        /// Whose it is.
        of: String,
        /// What is wrong with it.
        #[source]
        source: IntegrityError,
    },
    /// The id of something in it stands for something else here.
    #[error("{what} is here already, and is another than that of the archive")]
    Taken {
        /// What.
        what: String,
    },
    /// What it needs is here, and damaged.
    #[error("snapshot artifact `{artifact}` is here already, and is damaged")]
    Here {
        /// Which one.
        artifact: ArtifactId,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// This server encrypts what sandboxes leave, and an archive is not encrypted.
    #[error("this server encrypts what sandboxes leave on the disk, and takes in templates alone")]
    Encrypts,
    /// Another one is being taken in.
    #[error("another archive is being taken in")]
    Busy,
    /// A layer is none, or does not lie over what it should.
    #[error("cannot use layer `{layer}` of the archive")]
    Layer {
        /// Which one.
        layer: LayerId,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// A layer that it needs is here, and damaged.
    #[error("layer `{layer}` is here already, and is damaged")]
    LayerHere {
        /// Which one.
        layer: LayerId,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// A file could not be written or read.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be published.
    #[error("cannot publish what the archive has")]
    Publish(#[from] PublishError),
}

/// Held by who takes an archive in: they use one directory.
#[derive(Debug)]
pub(in crate::artifact) struct Importing(Arc<AtomicBool>);

impl Importing {
    /// None while another is held.
    pub(in crate::artifact) fn begin(flag: &Arc<AtomicBool>) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(flag)))
    }
}

impl Drop for Importing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What an archive would say of itself, beside what is here already, which stays as long as this is held. Nothing is written yet, and no other
/// archive is taken in meanwhile.
#[derive(Debug)]
pub struct Survey {
    header: ArchiveHeader,
    plan: Plan,
}

impl Survey {
    /// Digests of the contents that need not come, the largest first.
    pub fn here(&self) -> Vec<String> {
        let mut here = self.header.blobs();
        here.retain(|blob| !self.plan.is_missing(&blob.content));
        here.sort_by_key(|blob| std::cmp::Reverse(blob.content.bytes));
        here.into_iter().map(|blob| blob.content.blake3).collect()
    }

    /// Contents that have to come, of which so many bytes are here: they broke off the last time.
    pub fn begun(&self) -> Vec<(String, u64)> {
        let blobs = self.header.blobs().into_iter().filter(|blob| self.plan.is_missing(&blob.content));
        let begun = blobs.map(|blob| (self.plan.landing.begun(&blob.content), blob.content.blake3));
        begun.filter(|(bytes, _)| *bytes > 0).map(|(bytes, digest)| (digest, bytes)).collect()
    }

    /// Bytes that have to come.
    pub fn left(&self) -> u64 {
        let blobs = self.header.blobs().into_iter().filter(|blob| self.plan.is_missing(&blob.content));
        let left = blobs.map(|blob| blob.content.bytes - self.plan.landing.begun(&blob.content));
        left.fold(0, u64::saturating_add)
    }

    /// Reads the header of the archive that comes, which must be the same.
    pub fn receive<R: Read>(self, from: R) -> Result<Incoming<R>, UnpackError> {
        let Self { header, plan } = self;
        let mut entries = Entries::new(from).map_err(UnpackError::NotAnArchive)?;
        if read_header(&mut entries)? != header {
            return Err(UnpackError::Contradiction { problem: "it is of something else than was said of it before it came" });
        }
        Ok(Incoming { header, plan, entries })
    }
}

/// An archive whose header was read. Nothing is written yet.
pub struct Incoming<R: Read> {
    header: ArchiveHeader,
    plan: Plan,
    entries: Entries<R>,
}

impl<R: Read> std::fmt::Debug for Incoming<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("header", &self.header).finish_non_exhaustive()
    }
}

impl<R: Read> Incoming<R> {
    /// What it says of itself.
    pub fn header(&self) -> &ArchiveHeader {
        &self.header
    }

    /// Bytes that are to be written for it: all that is not here already. Holes count.
    pub fn missing_bytes(&self) -> u64 {
        let missing = |blob: &Blob| {
            let digest = &blob.content.blake3;
            let uses = self.plan.uses.get(digest).copied().unwrap_or_default() as u64;
            let landed = u64::from(uses > 0 && self.plan.landing.has(&blob.content));
            blob.content.bytes.saturating_mul(uses - landed)
        };
        // An image is there twice for a while: as it came, and with its zeros, which are holes.
        let images = self.plan.new_roots.iter().map(|root| root.content.bytes);
        self.header.blobs().iter().map(missing).chain(images).fold(0, u64::saturating_add)
    }
}

/// An artifact that came, and what it needs, kept from collection until it is on record.
#[derive(Debug)]
pub struct Unpacked {
    /// It.
    pub artifact: Artifact,
    /// Whether all of it was here before.
    pub was_here: bool,
    _pins: Vec<Pin>,
}

/// Whose archive it is.
#[derive(Debug, Clone, Copy)]
enum Hosts<'a> {
    /// Anybody's: what is here stays as it is.
    Strange,
    /// That of a host with the same records: what is damaged here is replaced. With the root images that this host has.
    Own(&'a [PathBuf]),
}

impl Hosts<'_> {
    fn mends(self) -> bool {
        matches!(self, Self::Own(_))
    }
}

/// What of an archive is here, and what is to be made of it.
#[derive(Debug)]
struct Plan {
    landing: Landing,
    /// Where each root image is, or is to be.
    roots: HashMap<String, PathBuf>,
    new_roots: Vec<CarriedRoot>,
    new_layers: Vec<CarriedLayer>,
    new_artifacts: Vec<CarriedArtifact>,
    /// How often each content is needed.
    uses: HashMap<String, usize>,
    pins: Vec<Pin>,
    importing: Importing,
}

impl Plan {
    /// Whether a content has to come.
    fn is_missing(&self, content: &MemberIntegrity) -> bool {
        self.uses.contains_key(&content.blake3) && !self.landing.has(content)
    }
}

/// Reads the header.
fn read_header<R: Read>(entries: &mut Entries<R>) -> Result<ArchiveHeader, UnpackError> {
    let first = entries.next().map_err(UnpackError::NotAnArchive)?;
    let Some(Found { bytes, .. }) = first.filter(|found| found.name == HEADER) else {
        return Err(UnpackError::NotAnArchive(io::Error::new(io::ErrorKind::InvalidData, "it does not begin as archives do")));
    };
    if bytes > MAX_HEADER_BYTES {
        return Err(UnpackError::HeaderTooLong { bytes });
    }
    let mut text = vec![0; usize::try_from(bytes).expect("it was bounded")];
    entries.read_exact(&mut text).map_err(|source| UnpackError::Read { at: "the header".to_owned(), source })?;
    checked_header(&text)
}

/// The header that a text is.
fn checked_header(text: &[u8]) -> Result<ArchiveHeader, UnpackError> {
    /// What is read before anything else is believed.
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let found = serde_json::from_slice::<Versioned>(text).map_err(UnpackError::Header)?.format;
    if found != ARCHIVE_FORMAT {
        return Err(UnpackError::Format { found });
    }
    let header: ArchiveHeader = serde_json::from_slice(text).map_err(UnpackError::Header)?;
    if let Some(sealed) = header.artifacts.iter().find(|artifact| artifact.manifest.format == SEALED_FORMAT) {
        return Err(UnpackError::Sealed { artifact: sealed.manifest.id.clone() });
    }
    header.check().map_err(|problem| UnpackError::Contradiction { problem })?;
    Ok(header)
}

fn file(path: &Path) -> impl Fn(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::File { path: path.clone(), source }
}

impl ArtifactStore {
    /// Reads the header of an archive, and sees what of it is here already. One archive is taken in at a time.
    ///
    /// Blocks for as long as that takes to be read: a layer or an image that is here is compared by its content.
    pub fn receive<R: Read>(&self, from: R) -> Result<Incoming<R>, UnpackError> {
        let importing = Importing::begin(&self.importing).ok_or(UnpackError::Busy)?;
        let mut entries = Entries::new(from).map_err(UnpackError::NotAnArchive)?;
        let header = read_header(&mut entries)?;
        let Survey { header, plan } = self.compare(header, importing, Hosts::Strange)?;
        Ok(Incoming { header, plan, entries })
    }

    /// Sees what is here already of an archive with this header (JSON), on a host that has these root images, whether or not anything stands
    /// on them yet. What of it is here and damaged is as if it were not: it is replaced once all has come. One archive is taken in at a time.
    ///
    /// Blocks as [`receive`](Self::receive) does.
    pub fn survey(&self, header: &[u8], images: &[PathBuf]) -> Result<Survey, UnpackError> {
        let importing = Importing::begin(&self.importing).ok_or(UnpackError::Busy)?;
        let bytes = header.len() as u64;
        if bytes > MAX_HEADER_BYTES {
            return Err(UnpackError::HeaderTooLong { bytes });
        }
        self.compare(checked_header(header)?, importing, Hosts::Own(images))
    }

    fn compare(&self, header: ArchiveHeader, importing: Importing, from: Hosts<'_>) -> Result<Survey, UnpackError> {
        let of_a_sandbox = header.artifacts.iter().any(|artifact| artifact.manifest.kind != ArtifactKind::BaseTemplate);
        if of_a_sandbox && self.secrecy() == Secrecy::Sealed {
            return Err(UnpackError::Encrypts);
        }
        let plan = self.plan(&header, importing, from)?;
        Ok(Survey { header, plan })
    }

    fn plan(&self, header: &ArchiveHeader, importing: Importing, from: Hosts<'_>) -> Result<Plan, UnpackError> {
        let images = if let Hosts::Own(images) = from { images } else { &[] };
        let landing = Landing::open(&self.root).map_err(file(&self.root))?;
        // Before anything is looked for: from then on it stays.
        let names = header.artifacts.iter().map(|artifact| PinName::from(&artifact.manifest.id));
        let names = names.chain(header.layers.iter().map(|layer| PinName::from(layer.id.clone())));
        let names = names.chain(header.roots.iter().map(|root| PinName::Root(root.content.blake3.clone())));
        let pins = names.map(|name| self.pin(name)).collect();
        let mut plan = Plan {
            landing,
            roots: HashMap::new(),
            new_roots: Vec::new(),
            new_layers: Vec::new(),
            new_artifacts: Vec::new(),
            uses: HashMap::new(),
            pins,
            importing,
        };
        for root in &header.roots {
            let here = self.root_here(root, images).filter(|path| {
                // One that came with copies is called by the digest of its whole file, and not by this one.
                let dir = path.parent().filter(|dir| dir.parent().is_some_and(|roots| roots.ends_with(ROOTS)));
                let name = dir.and_then(|dir| dir.file_name()?.to_str());
                plan.pins.extend(name.map(|name| self.pin(PinName::Root(name.to_owned()))));
                path.exists()
            });
            if here.is_none() {
                plan.new_roots.push(root.clone());
            }
            let path = here.unwrap_or_else(|| self.root_image(&root.content.blake3).join(root.form.file_name()));
            plan.roots.insert(root.content.blake3.clone(), path);
        }
        for layer in &header.layers {
            let has = self.has_layer(layer);
            let is_damaged = from.mends() && has.is_err() && self.is_damaged_layer(&layer.id, header);
            if is_damaged || !has? {
                plan.new_layers.push(layer.clone());
            }
        }
        for artifact in &header.artifacts {
            let has = match self.has_artifact(artifact) {
                Err(UnpackError::Here { source, .. }) if from.mends() && source.is_damage() => false,
                has => has?,
            };
            if !has {
                plan.new_artifacts.push(artifact.clone());
            }
        }
        let roots = plan.new_roots.iter().map(|root| &root.content);
        let layers = plan.new_layers.iter().map(|layer| &layer.content);
        let members = plan.new_artifacts.iter().flat_map(|artifact| artifact.members.values());
        for content in roots.chain(layers).chain(members) {
            *plan.uses.entry(content.blake3.clone()).or_default() += 1;
        }
        Ok(plan)
    }

    /// Where a root image of this content is, one of the host's own included.
    fn root_here(&self, root: &CarriedRoot, images: &[PathBuf]) -> Option<PathBuf> {
        let mut paths = Self::root_images(&self.root).unwrap_or_default();
        paths.extend(images.iter().cloned());
        if let Ok(entries) = fs::read_dir(self.root_image(&root.content.blake3)) {
            paths.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        }
        // One that is gone, or cannot be read, is not there.
        let may_be = |path: &&PathBuf| fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == root.size);
        let is_it = |path: &&PathBuf| self.image_content(path).is_ok_and(|found| found == root.content);
        paths.iter().filter(may_be).find(is_it).cloned()
    }

    /// Whether the layer is here. Another one of that name is refused.
    fn has_layer(&self, layer: &CarriedLayer) -> Result<bool, UnpackError> {
        let path = self.layer_file(&layer.id);
        if !fs::exists(&path).map_err(file(&path))? {
            return Ok(false);
        }
        let taken = || UnpackError::Taken { what: format!("layer `{}`", layer.id) };
        let form = form_called(&layer.form).filter(|form| self.layer_in(&layer.id, *form) == path).ok_or_else(taken)?;
        let found = self.layer_content(form, &path);
        let found = found.map_err(|source| UnpackError::LayerHere { layer: layer.id.clone(), source })?;
        if found == layer.content { Ok(true) } else { Err(taken()) }
    }

    /// Whether the file of a layer is not what was recorded of it here with one of these artifacts.
    fn is_damaged_layer(&self, layer: &LayerId, header: &ArchiveHeader) -> bool {
        let Ok(found) = self.proofs.digest(&self.layer_file(layer)) else { return false };
        let here = header.artifacts.iter().filter_map(|carried| self.load(&carried.manifest.id).ok());
        let mut recorded = here.filter_map(|artifact| artifact.integrity.members.get(&layer.member()).cloned());
        recorded.any(|recorded| recorded != found)
    }

    /// Whether the artifact is here, and intact. Another one of that name is refused.
    fn has_artifact(&self, carried: &CarriedArtifact) -> Result<bool, UnpackError> {
        let id = &carried.manifest.id;
        if !self.dir(id).exists() {
            return Ok(false);
        }
        let broken = |source| UnpackError::Here { artifact: id.clone(), source };
        let artifact = self.load(id).map_err(broken)?;
        let mut manifest = artifact.manifest.clone();
        manifest.disk.rootfs_path.clone_from(&carried.manifest.disk.rootfs_path);
        let same = |(name, content): (&String, &MemberIntegrity)| artifact.integrity.members.get(name) == Some(content);
        if manifest != carried.manifest || !carried.members.iter().all(same) {
            return Err(UnpackError::Taken { what: format!("snapshot artifact `{id}`") });
        }
        self.verify(&artifact).map_err(broken)?;
        Ok(true)
    }

    /// Takes an archive in. What was here already is left as it is.
    ///
    /// Blocks for as long as it takes to be read and written.
    pub fn unpack<R: Read>(&self, incoming: Incoming<R>) -> Result<Unpacked, UnpackError> {
        let Incoming { header, plan, mut entries } = incoming;
        let blobs = header.blobs();
        let wanted: HashSet<&str> = blobs.iter().map(|blob| blob.content.blake3.as_str()).collect();
        plan.landing.keep_only(&wanted).map_err(file(&plan.landing.dir))?;
        let at_end = |source| UnpackError::Read { at: "the end".to_owned(), source };
        // What comes next, once that was read: the end, too, behind which there is nothing to be read.
        let mut next: Option<Option<Found>> = None;
        for blob in &blobs {
            let read = |source| UnpackError::Read { at: blob.name(), source };
            let found = match next.take() {
                None => entries.next().map_err(read)?,
                Some(found) => found,
            };
            if !land(&plan, blob, found.as_ref(), &mut entries)? {
                next = Some(found);
            }
        }
        let last = match next {
            None => entries.next().map_err(at_end)?,
            Some(found) => found,
        };
        if let Some(Found { name, .. }) = last {
            return Err(UnpackError::Entry { found: name, expected: "the end".to_owned() });
        }
        entries.end().map_err(at_end)?;
        self.settle(&header, plan)
    }

    /// Puts what has landed where it belongs.
    fn settle(&self, header: &ArchiveHeader, plan: Plan) -> Result<Unpacked, UnpackError> {
        let Plan { landing, roots, new_roots, new_layers, new_artifacts, uses, pins, importing } = plan;
        let was_here = new_artifacts.is_empty();
        let mut stock = Stock { landing, uses };
        for root in &new_roots {
            self.settle_root(root, &mut stock)?;
        }
        let below = header.below().map_err(|problem| UnpackError::Contradiction { problem })?;
        for layer in &new_layers {
            let form = form_called(&layer.form).ok_or(UnpackError::Contradiction { problem: "a layer is of no form" })?;
            let path = stock.landing.dir.join(format!(".{}.{}", layer.id, layer.form));
            stock.take(&layer.content, &path).map_err(file(&path))?;
            let under = match below[&layer.id] {
                Under::Root(digest) => &roots[digest],
                Under::Layer(id) => &self.layer_in(id, form),
            };
            let below = if let Under::Root(_) = below[&layer.id] { Below::Image(under) } else { Below::Layer(under) };
            form.settle(&path, below).map_err(|source| match source {
                // No fault of the archive.
                DiskError::File { path, source } => UnpackError::File { path, source },
                source => UnpackError::Layer { layer: layer.id.clone(), source },
            })?;
            // Before it has its name: a layer that a loss of power has emptied would be taken for another one.
            member::sync(&path).and_then(|()| self.adopt_layer(&layer.id, &path)).map_err(file(&path))?;
        }
        for artifact in &new_artifacts {
            self.settle_artifact(artifact, &roots[&artifact.root], &mut stock)?;
        }
        drop(importing);
        let id = &header.artifact().manifest.id;
        let artifact = self.load(id).map_err(|source| UnpackError::Here { artifact: id.clone(), source })?;
        Ok(Unpacked { artifact, was_here, _pins: pins })
    }

    fn settle_root(&self, root: &CarriedRoot, stock: &mut Stock) -> Result<(), UnpackError> {
        let target = self.root_image(&root.content.blake3);
        self.place_root(root, stock, &target).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                UnpackError::Contradiction { problem: "its root image is not in the form of one" }
            }
            _ => file(&target)(error),
        })
    }

    fn place_root(&self, root: &CarriedRoot, stock: &mut Stock, target: &Path) -> io::Result<()> {
        let roots = self.root.join(ROOTS);
        // Not the name that it has while it is being collected.
        let hidden = roots.join(format!(".{}.new", root.content.blake3));
        private_dir(&roots)?;
        // What was here, or half of it, was found to be another content.
        for old in [hidden.as_path(), target] {
            if old.exists() {
                firkin_files::remove_tree(old)?;
            }
        }
        private_dir(&hidden)?;
        let image = hidden.join(root.form.file_name());
        stock.expand(root, &image)?;
        member::freeze(&image, 0o444)?;
        member::sync(&hidden)?;
        fs::rename(&hidden, target)?;
        sync_dir(&roots)
    }

    fn settle_artifact(&self, carried: &CarriedArtifact, root: &Path, stock: &mut Stock) -> Result<(), UnpackError> {
        let mut draft = self.draft_called(carried.manifest.id.clone(), Secrecy::Plain).map_err(file(&self.root))?;
        draft.replace();
        for (name, content) in &carried.members {
            let path = draft.dir().join(name);
            stock.take(content, &path).map_err(file(&path))?;
        }
        let mut manifest = carried.manifest.clone();
        manifest.disk.rootfs_path = root.to_owned();
        self.publish_expecting(draft, manifest, &carried.members)?;
        Ok(())
    }

    /// The directory of a root image that came with an archive.
    pub(in crate::artifact) fn root_image(&self, digest: &str) -> PathBuf {
        self.root.join(ROOTS).join(digest)
    }
}

/// Takes in one content, if it is what was found next. Whether it is: one that is here already may be left out by who sends.
fn land<R: Read>(plan: &Plan, blob: &Blob, next: Option<&Found>, entries: &mut Entries<R>) -> Result<bool, UnpackError> {
    let content = &blob.content;
    let is_missing = plan.is_missing(content);
    let read = |source| UnpackError::Read { at: blob.name(), source };
    let found = next.map_or("end of the archive", |found| &found.name);
    let begun = next.and_then(|found| rest_of(&found.name, &content.blake3));
    // Only what was asked for: the rest of what is here.
    let begun = begun.filter(|begun| *begun == 0 || (is_missing && *begun == plan.landing.begun(content)));
    let (Some(Found { bytes, .. }), Some(begun)) = (next, begun) else {
        if is_missing {
            return Err(UnpackError::Entry { found: found.to_owned(), expected: blob.name() });
        }
        return Ok(false);
    };
    let bytes = *bytes;
    let damaged = |source| UnpackError::Damaged { of: blob.of.clone(), source };
    if bytes != content.bytes - begun {
        let (member, expected) = (blob.member.clone(), content.bytes - begun);
        return Err(damaged(IntegrityError::Size { member, expected, found: bytes }));
    }
    let found = if is_missing { plan.landing.write(content, begun, entries) } else { copy(entries, bytes, None) };
    let found = found.map_err(|error| match error {
        LandError::From(source) => read(source),
        LandError::File { path, source } => UnpackError::File { path, source },
    })?;
    content.matches(&blob.member, &found).map_err(damaged)?;
    Ok(true)
}
