//! A program and the files that it needs to run.

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
};

use crate::Allowed;

/// Where the loader keeps what it knows of libraries. With it, it finds in a root what it found on the host.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
/// What the loader writes of a program: a line for each library, and there are programs with hundreds.
const MAX_HEADERS: u16 = 256;
/// The longest path of a loader.
const MAX_LOADER_BYTES: u64 = 4096;

/// A program that is to be jailed.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Where it is: absolute, and no link.
    pub path: &'a Path,
    /// Files that it opens by their names while it runs, libraries that it loads itself among them.
    pub files: &'a [PathBuf],
    /// Devices that it opens by their names.
    pub devices: &'a [PathBuf],
    /// The system calls that it makes.
    pub calls: &'a [Allowed],
}

/// All files of a program, by the names that it opens them by.
pub(crate) fn files(program: &Program<'_>) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![program.path.to_path_buf()];
    if let Some(loader) = loader(program.path)? {
        files.extend(libraries(&loader, program.path)?);
        for file in program.files {
            // A library that is loaded later brings libraries of its own; anything else is no program and has none.
            if file.extension().is_some_and(|extension| extension == "so") {
                files.extend(libraries(&loader, file)?);
            }
        }
        files.push(loader);
        files.extend(Some(PathBuf::from(LOADER_CACHE)).filter(|cache| cache.exists()));
    }
    files.extend(program.files.iter().cloned());
    files.sort();
    files.dedup();
    Ok(files)
}

/// What the loader says that it would load: lines of `name => path (address)`, or `path (address)`.
fn libraries(loader: &Path, of: &Path) -> io::Result<Vec<PathBuf>> {
    let answer = Command::new(loader).arg("--list").arg(of).env_clear().current_dir("/").output()?;
    let text = String::from_utf8_lossy(&answer.stdout);
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr);
        return Err(io::Error::other(format!("the libraries of `{}` cannot be listed: {}", of.display(), said.trim())));
    }
    let path = |line: &str| {
        let (name, _) = line.trim().rsplit_once(" (")?;
        let path = name.split_once(" => ").map_or(name, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    Ok(text.lines().filter_map(path).collect())
}

/// The loader that an ELF file of 64 bits names. None: it is loaded by the kernel alone.
fn loader(program: &Path) -> io::Result<Option<PathBuf>> {
    const INTERPRETER: u32 = 3;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is no program for this host", program.display()));
    let mut file = fs_err::File::open(program)?;
    let mut header = [0; 64];
    file.read_exact(&mut header)?;
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, 1] {
        return Err(malformed());
    }
    let table = u64::from_le_bytes(field(&header, 32));
    let (size, count) = (u16::from_le_bytes(field(&header, 54)), u16::from_le_bytes(field(&header, 56)));
    if usize::from(size) < 56 || count > MAX_HEADERS {
        return Err(malformed());
    }
    for n in 0..u64::from(count) {
        let mut segment = [0; 56];
        file.seek(SeekFrom::Start(table.saturating_add(n * u64::from(size))))?;
        file.read_exact(&mut segment)?;
        if u32::from_le_bytes(field(&segment, 0)) == INTERPRETER {
            let (offset, length) = (u64::from_le_bytes(field(&segment, 8)), u64::from_le_bytes(field(&segment, 32)));
            file.seek(SeekFrom::Start(offset))?;
            let mut path = Vec::new();
            (&mut file).take(length.min(MAX_LOADER_BYTES)).read_to_end(&mut path)?;
            let path = path.strip_suffix(&[0]).and_then(|path| str::from_utf8(path).ok()).ok_or_else(malformed)?;
            return Ok(Some(PathBuf::from(path)));
        }
    }
    Ok(None)
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the offset is that of a field within the header")
}
