//! The `state` member: QEMU's device state in an envelope that says how it is to be loaded.
//!
//! ```text
//!   0  magic `FKNSTATE`   8  version   12  form   16  length   24  blake3 of the stream   56  the stream
//! ```
//!
//! The stream has one of two forms. A booted machine's is a migration that left out the memory file (`x-ignore-shared`); a
//! clone's is `xen-save-devices-state`, which leaves out all memory and also the configuration section that QEMU wants to see
//! first, so that is put back here. A stream loads only with the capabilities that it was saved with, hence the form. The
//! digest is checked before a process exists: QEMU's parser never sees a damaged stream.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;

const MAGIC: [u8; 8] = *b"FKNSTATE";
/// Readers keep every version that was ever released.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
/// A q35's state has 0.2 MiB and grows with CPUs and queues, not with memory.
const MAX_STREAM_BYTES: u64 = 64 << 20;

/// Head of a migration stream: magic and version 3, then the first section. QEMU's migration/savevm.
const STREAM_HEAD: [u8; 8] = *b"QEVM\0\0\0\x03";
const SECTION_CONFIGURATION: u8 = 7;

/// How a stream was saved, and so how it must be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By migration with `x-ignore-shared`.
    MemoryByReference,
    /// By `xen-save-devices-state`.
    DevicesOnly,
}

/// A device state, ready to be loaded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DeviceState {
    pub(super) form: Form,
    pub(super) stream: Vec<u8>,
}

/// Why a state file was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("cannot read the device state")]
    Io(#[from] io::Error),
    #[error("the device state is of version {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("the device state is damaged: {0}")]
    Damaged(&'static str),
}

impl DeviceState {
    /// Reads and checks a `state` member.
    pub(super) fn read(path: &Path) -> Result<Self, ReadError> {
        let file = fs_err::File::open(path)?;
        let length = file.metadata()?.len();
        if length < HEADER_BYTES as u64 || length > MAX_STREAM_BYTES + HEADER_BYTES as u64 {
            return Err(ReadError::Damaged("its length is out of range"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        file.take(length).read_to_end(&mut bytes)?;
        Self::parse(bytes)
    }

    fn parse(mut bytes: Vec<u8>) -> Result<Self, ReadError> {
        let stream = bytes.split_off(HEADER_BYTES.min(bytes.len()));
        let header: [u8; HEADER_BYTES] = bytes.try_into().map_err(|_| ReadError::Damaged("it is shorter than its header"))?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if header[..8] != MAGIC {
            return Err(ReadError::Damaged("it does not begin with its magic"));
        }
        if word(8) != VERSION {
            return Err(ReadError::Version(word(8)));
        }
        let form = match word(12) {
            0 => Form::MemoryByReference,
            1 => Form::DevicesOnly,
            _ => return Err(ReadError::Damaged("it is of an unknown form")),
        };
        if u64::from_le_bytes(header[16..24].try_into().expect("eight bytes")) != stream.len() as u64 {
            return Err(ReadError::Damaged("its length is not what its header says"));
        }
        if digest(form, &stream).as_bytes() != &header[24..] {
            return Err(ReadError::Damaged("it does not match its digest"));
        }
        Ok(Self { form, stream })
    }

    /// Takes what QEMU wrote. It may be anything.
    fn collect(written: &File, form: Form, machine: &str) -> Result<Self, ReadError> {
        let length = written.metadata()?.len();
        if length > MAX_STREAM_BYTES {
            return Err(ReadError::Damaged("the engine wrote more than a device state can have"));
        }
        let mut stream = vec![0; usize::try_from(length).unwrap_or_default()];
        written.read_exact_at(&mut stream, 0)?;
        if !stream.starts_with(&STREAM_HEAD) {
            return Err(ReadError::Damaged("the engine wrote no migration stream of version 3"));
        }
        if form == Form::DevicesOnly {
            stream = with_configuration(&stream, machine);
        }
        Ok(Self { form, stream })
    }

    /// Writes the member, mode 0600. Not synced: when it must be durable is the caller's decision.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&self.header())?;
        file.write_all(&self.stream)
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&code(self.form).to_le_bytes());
        header[16..24].copy_from_slice(&(self.stream.len() as u64).to_le_bytes());
        header[24..].copy_from_slice(digest(self.form, &self.stream).as_bytes());
        header
    }

    /// The stream as a descriptor that a process without any right to the file can read from.
    pub(super) fn into_descriptor(self) -> io::Result<std::os::fd::OwnedFd> {
        let memory = rustix::fs::memfd_create("firkin-state", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = File::from(memory);
        file.write_all(&self.stream)?;
        // QEMU picks a descriptor of a set by its access mode, and reads from where the file begins.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        Ok(fs_err::File::open(path)?.into_parts().0.into())
    }
}

/// What QEMU writes device state to: a file in memory that has no name, so that it needs no right to any directory.
#[derive(Debug)]
pub(super) struct Outlet {
    memory: File,
    /// The same for writing only, as QEMU asks for it. It shares its place in the file with what QEMU is handed.
    pub(super) written: File,
}

impl Outlet {
    pub(super) fn new() -> io::Result<Self> {
        let memory = File::from(rustix::fs::memfd_create("firkin-state-out", rustix::fs::MemfdFlags::CLOEXEC)?);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
        let written = fs_err::OpenOptions::new().write(true).open(path)?.into_parts().0;
        Ok(Self { memory, written })
    }

    /// Makes it empty, so that the next state is the only one in it.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.memory.set_len(0)?;
        (&self.written).seek(io::SeekFrom::Start(0)).map(drop)
    }

    /// Takes what was written out of it: nothing of it stays in memory, whether it was a state or not.
    pub(super) fn collect(&self, form: Form, machine: &str) -> Result<DeviceState, ReadError> {
        let collected = DeviceState::collect(&self.memory, form, machine);
        self.clear()?;
        collected
    }
}

fn code(form: Form) -> u32 {
    match form {
        Form::MemoryByReference => 0,
        Form::DevicesOnly => 1,
    }
}

/// The form is under the digest too: it decides what QEMU is told to expect.
fn digest(form: Form, stream: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(&code(form).to_le_bytes()).update(stream).finalize()
}

/// Puts the section behind the stream's head that tells the machine type, so that QEMU goes on checking it.
fn with_configuration(stream: &[u8], machine: &str) -> Vec<u8> {
    let (head, sections) = stream.split_at(STREAM_HEAD.len());
    let length = u32::try_from(machine.len()).expect("the name of a machine type is short").to_be_bytes();
    [head, &[SECTION_CONFIGURATION], &length, machine.as_bytes(), sections].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(tail: &[u8]) -> Vec<u8> {
        [&STREAM_HEAD[..], tail].concat()
    }

    #[test]
    fn the_machine_type_is_put_back_into_a_devices_only_stream() {
        let outlet = Outlet::new().unwrap();
        // As QEMU has it: a duplicate, which shares its place in the file.
        let mut qemu = outlet.written.try_clone().unwrap();
        for tail in [&b"\x04a state"[..], b"\x04rest"] {
            qemu.write_all(&stream(tail)).unwrap();
            let state = outlet.collect(Form::DevicesOnly, "pc-q35-10.0").unwrap();
            assert_eq!(outlet.memory.metadata().unwrap().len(), 0);
            assert_eq!(state.stream, stream(&[b"\x07\0\0\0\x0bpc-q35-10.0", tail].concat()));
        }
    }

    #[test]
    fn a_state_without_end_is_refused_before_it_is_read() {
        let outlet = Outlet::new().unwrap();
        outlet.written.set_len(MAX_STREAM_BYTES + 1).unwrap();
        assert!(matches!(outlet.collect(Form::DevicesOnly, "m"), Err(ReadError::Damaged(_))));
        assert_eq!(outlet.memory.metadata().unwrap().len(), 0);
    }

    proptest! {
        #[test]
        fn a_state_reads_back_and_any_damage_is_refused(
            tail in proptest::collection::vec(any::<u8>(), 0..200),
            devices_only in any::<bool>(),
            place in any::<prop::sample::Index>(),
            flip in 1u8..=255,
            truncate in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("state");
            let form = if devices_only { Form::DevicesOnly } else { Form::MemoryByReference };
            let state = DeviceState { form, stream: stream(&tail) };
            state.write(&path).unwrap();
            prop_assert_eq!(DeviceState::read(&path).unwrap(), state);
            let mut bytes = fs_err::read(&path).unwrap();
            let at = place.index(bytes.len());
            if truncate { bytes.truncate(at) } else { bytes[at] ^= flip }
            fs_err::write(&path, &bytes).unwrap();
            prop_assert!(DeviceState::read(&path).is_err());
        }
    }
}
