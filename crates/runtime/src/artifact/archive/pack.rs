//! Packing: an artifact and what it stands on, as a stream. It is proven before, and once more while it is read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::PoisonError,
};

use firkin_engine::{Carried, DiskError, DiskFormat};
use fs_err as fs;
use tar::{Builder, EntryType, Header};
use zstd::stream::write::Encoder;

use super::{
    super::{
        Artifact, ArtifactStore, Pin, PinName,
        manifest::{MemberIntegrity, memory_base},
        member::Identity,
        publish::own_members,
    },
    CHUNK_BYTES,
    header::{
        ARCHIVE_FORMAT, ArchiveHeader, ArchiveKind, Blob, CarriedArtifact, CarriedLayer, CarriedRoot, HEADER, RootForm, rest_name,
    },
    sparse::Sparse,
};
use crate::{
    artifact::IntegrityError,
    ground::ids::{ArtifactId, LayerId},
};

/// What memory and images of emulated guests were measured with: a higher level takes several times as long for a tenth less.
pub(super) const LEVEL: i32 = 1;

/// Contents of files that are remembered: some hundred bytes each.
const MOST_MEASURED: usize = 10_000;

/// Why an artifact was not packed. What was written by then is no archive.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It, or what it stands on, is not what was published.
    #[error("cannot pack snapshot artifact `{artifact}`: it is not intact")]
    Integrity {
        /// Which one.
        artifact: ArtifactId,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// It is encrypted, and its archive would not be.
    #[error("cannot pack snapshot artifact `{artifact}`: it is encrypted under this server's key, and an archive would not be")]
    Sealed {
        /// Which one.
        artifact: ArtifactId,
    },
    /// A layer cannot be carried.
    #[error("cannot pack layer `{layer}`")]
    Layer {
        /// Which one.
        layer: LayerId,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// A file of it cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A member was changed since it was proven.
    #[error("{member} has changed while it was packed")]
    Changed {
        /// Which one.
        member: String,
    },
    /// Nobody takes the archive any more, or it cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// An artifact that is about to be packed: proven, measured, and kept from collection.
#[derive(Debug)]
pub struct Packing {
    header: ArchiveHeader,
    blobs: Vec<(Blob, Source)>,
    /// From which byte on contents are written, where that is not the first.
    begun: HashMap<String, u64>,
    _pins: Vec<Pin>,
}

/// One content of an archive, as it is in this host's files.
#[derive(Debug, Clone)]
pub struct Content {
    /// Its size and digest.
    pub integrity: MemberIntegrity,
    source: Source,
}

impl Content {
    /// The file that it is of.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// Opens it. Whether it is what it must be is for whoever reads it to see.
    pub fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        self.source.open()
    }
}

/// Where a content is.
#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    /// With what stands for its beginning.
    Layer(PathBuf, Carried),
    /// Without its zeros.
    Image(PathBuf),
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Layer(path, _) | Self::Image(path) => path,
        }
    }

    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::File(path) => Box::new(fs::File::open(path)?),
            Self::Layer(path, carried) => {
                let mut file = fs::File::open(path)?;
                io::Seek::seek(&mut file, io::SeekFrom::Start(carried.rest))?;
                Box::new(io::Cursor::new(carried.head.clone()).chain(file))
            }
            Self::Image(path) => Box::new(Sparse::open(path)?),
        })
    }

    fn measure(&self) -> io::Result<MemberIntegrity> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(BufReader::with_capacity(CHUNK_BYTES, self.open()?))?;
        Ok(MemberIntegrity { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// Size and digest of a root image without its zeros.
fn measure_image(path: &Path) -> io::Result<MemberIntegrity> {
    Source::Image(path.to_owned()).measure()
}

/// What is found of the artifacts of an archive, by digest.
type Sources = BTreeMap<String, Source>;

impl ArtifactStore {
    /// Gets an artifact ready to be packed, as what `record` tells of it. It and all that it stands on is proven, and stays as long as
    /// this is held.
    ///
    /// Blocks for as long as its layers, and what has not been proven since it was written, take to be read.
    pub fn packing(&self, id: &ArtifactId, kind: ArchiveKind, record: serde_json::Value) -> Result<Packing, PackError> {
        let broken = |artifact: &ArtifactId| {
            let artifact = artifact.clone();
            move |source| PackError::Integrity { artifact, source }
        };
        let mut pins = vec![self.pin(id)];
        let artifact = self.load(id).map_err(broken(id))?;
        let base = memory_base(&artifact.manifest);
        pins.push(self.pin(&base));
        let mut artifacts = vec![artifact];
        if base != *id {
            artifacts.insert(0, self.load(&base).map_err(broken(&base))?);
        }
        let mut sources = Sources::new();
        let mut header =
            ArchiveHeader { format: ARCHIVE_FORMAT, kind, record, artifacts: Vec::new(), layers: Vec::new(), roots: Vec::new() };
        for artifact in &artifacts {
            let id = &artifact.manifest.id;
            if artifact.manifest.is_sealed() || artifact.is_sealed() {
                return Err(PackError::Sealed { artifact: id.clone() });
            }
            pins.extend(artifact.manifest.disk.layers.iter().map(|layer| self.pin(layer.clone())));
            self.verify(artifact).map_err(broken(id))?;
            self.add_layers(artifact, &mut header, &mut sources)?;
            let root = self.add_root(artifact, &mut header, &mut sources)?;
            pins.push(self.pin(PinName::Root(root.clone())));
            header.artifacts.push(carried(artifact, root, &mut sources));
        }
        self.proofs.save();
        let with_source = |blob: Blob| {
            let source = sources[&blob.content.blake3].clone();
            (blob, source)
        };
        let blobs = header.blobs().into_iter().map(with_source).collect();
        Ok(Packing { header, blobs, begun: HashMap::new(), _pins: pins })
    }

    fn add_layers(&self, artifact: &Artifact, header: &mut ArchiveHeader, sources: &mut Sources) -> Result<(), PackError> {
        let known: HashSet<LayerId> = header.layers.iter().map(|layer| layer.id.clone()).collect();
        for (id, path) in artifact.manifest.disk.layers.iter().zip(&artifact.layers) {
            if known.contains(id) {
                continue;
            }
            let carried = self.form_of(path).carried(path);
            let carried = carried.map_err(|source| PackError::Layer { layer: id.clone(), source })?;
            let source = Source::Layer(path.clone(), carried);
            let content =
                self.content_of(path, || source.measure()).map_err(|source| PackError::File { path: path.clone(), source })?;
            sources.insert(content.blake3.clone(), source);
            header.layers.push(CarriedLayer { id: id.clone(), form: self.form_of(path).extension().to_owned(), content });
        }
        Ok(())
    }

    /// Gives the digest of its root image.
    fn add_root(&self, artifact: &Artifact, header: &mut ArchiveHeader, sources: &mut Sources) -> Result<String, PackError> {
        let path = &artifact.manifest.disk.rootfs_path;
        let file = |source| PackError::File { path: path.clone(), source };
        let content = self.image_content(path).map_err(file)?;
        let digest = content.blake3.clone();
        if !header.roots.iter().any(|root| root.content == content) {
            let form = artifact.layers.first().map_or(self.disks, |layer| self.form_of(layer)).image_form();
            let size = fs::metadata(path).map_err(file)?.len();
            sources.insert(digest.clone(), Source::Image(path.clone()));
            header.roots.push(CarriedRoot { form: RootForm::from(form), size, content });
        }
        Ok(digest)
    }
}

impl ArtifactStore {
    /// What a root image carries, from memory when it was measured since the store was opened.
    pub(super) fn image_content(&self, path: &Path) -> io::Result<MemberIntegrity> {
        self.content_of(path, || measure_image(path))
    }

    /// What a layer carries, likewise.
    pub(super) fn layer_content(&self, form: &dyn DiskFormat, path: &Path) -> Result<MemberIntegrity, DiskError> {
        let source = Source::Layer(path.to_owned(), form.carried(path)?);
        self.content_of(path, || source.measure()).map_err(|source| DiskError::File { path: path.to_owned(), source })
    }

    fn content_of(&self, path: &Path, measure: impl FnOnce() -> io::Result<MemberIntegrity>) -> io::Result<MemberIntegrity> {
        let identity = Identity::of(path)?;
        let measured = || self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = measured().get(&identity) {
            return Ok(known.clone());
        }
        let content = measure()?;
        if Identity::of(path)? != identity {
            return Err(io::Error::other("the file changed while it was read"));
        }
        let mut measured = measured();
        if measured.len() >= MOST_MEASURED {
            // Most are of files that are gone.
            measured.clear();
        }
        measured.insert(identity, content.clone());
        Ok(content)
    }
}

fn carried(artifact: &Artifact, root: String, sources: &mut Sources) -> CarriedArtifact {
    let mut manifest = artifact.manifest.clone();
    // A place of this host's, and nobody else's business.
    manifest.disk.rootfs_path = PathBuf::new();
    let mut members = BTreeMap::new();
    let all = artifact.members();
    for name in own_members(&manifest.memory) {
        let (_, path) = all.iter().find(|(member, _)| member == name).expect("an artifact has its own members");
        let content = artifact.integrity.members[*name].clone();
        sources.insert(content.blake3.clone(), Source::File(path.to_path_buf()));
        members.insert((*name).to_owned(), content);
    }
    CarriedArtifact { manifest, members, root }
}

impl Packing {
    /// What the archive will say of itself.
    pub fn header(&self) -> &ArchiveHeader {
        &self.header
    }

    /// Without the contents of these digests, for somebody who has them.
    #[must_use]
    pub fn without(mut self, digests: &HashSet<String>) -> Self {
        self.blobs.retain(|(blob, _)| !digests.contains(&blob.content.blake3));
        self
    }

    /// With the contents of these digests from such a byte on, for somebody who has what is before that. What is beyond a content's end, or of no
    /// content, is passed over.
    #[must_use]
    pub fn from(mut self, begun: HashMap<String, u64>) -> Self {
        self.begun = begun;
        self
    }

    /// What follows the header, in its order.
    pub fn contents(&self) -> impl Iterator<Item = Content> {
        self.blobs.iter().map(|(blob, source)| Content { integrity: blob.content.clone(), source: source.clone() })
    }

    /// Writes the archive. Blocks.
    pub fn write(&self, to: impl Write) -> Result<(), PackError> {
        let mut encoder = Encoder::new(to, LEVEL).map_err(PackError::Write)?;
        encoder.include_checksum(true).map_err(PackError::Write)?;
        let mut tar = Builder::new(encoder);
        let header = serde_json::to_vec_pretty(&self.header).map_err(|error| PackError::Write(error.into()))?;
        tar.append(&entry(HEADER, header.len() as u64), &header[..]).map_err(PackError::Write)?;
        for (blob, source) in &self.blobs {
            let MemberIntegrity { bytes, blake3 } = &blob.content;
            let file = |error| PackError::File { path: source.path().to_owned(), source: error };
            let mut from = Digesting { from: source.open().map_err(file)?, hasher: blake3::Hasher::new(), failed: None };
            let begun = self.begun.get(blake3).copied().filter(|begun| begun <= bytes).unwrap_or(0);
            // Read all the same: what is sent is proven once more, and as a whole.
            let passed = io::copy(&mut (&mut from).take(begun), &mut io::sink());
            let read = BufReader::with_capacity(CHUNK_BYTES, (&mut from).take(*bytes - begun));
            let appended = passed.and_then(|_| tar.append(&entry(&rest_name(blake3, begun), *bytes - begun), read));
            if let Some(error) = from.failed {
                return Err(file(error));
            }
            appended.map_err(PackError::Write)?;
            if from.hasher.count() != *bytes || from.hasher.finalize().to_hex().as_str() != blake3 {
                return Err(PackError::Changed { member: blob.name() });
            }
        }
        let encoder = tar.into_inner().map_err(PackError::Write)?;
        encoder.finish().and_then(|mut to| to.flush()).map_err(PackError::Write)
    }
}

/// The head of an entry: the same for the same content, whoever packs it and when.
pub(super) fn entry(name: &str, bytes: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_path(name).expect("a digest fits into tar's name");
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_cksum();
    header
}

/// Digests what is read from it, and keeps why that failed apart from why it could not be written.
struct Digesting<R> {
    from: R,
    hasher: blake3::Hasher,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buffer) {
            Ok(read) => {
                self.hasher.update(&buffer[..read]);
                Ok(read)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
