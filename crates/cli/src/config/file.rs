//! A configuration file, from bytes to what it says of each key, with the line where it says so.
//!
//! Whoever may write the file decides how a server runs, with all of its rights: so a file that others may write is refused, as one of theirs
//! is. It holds no secret, and needs not be kept from being read.

use std::{
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use fs_err as fs;
use toml_edit::{Document, Item, Value};

use super::keys::{Key, Said, Takes, complaint, keys, nearest};

/// The largest file that is read: with a page of comments for each key it would be smaller.
const MAX_BYTES: u64 = 256 << 10;

/// The bits that let a group, or others, write.
const WRITABLE: u32 = 0o022;

/// A file that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What it says, in its order.
    pub(crate) entries: Vec<Entry>,
}

/// What a file says of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: Key,
    /// The line of the key, from 1 on.
    pub(crate) line: usize,
    /// What is said.
    pub(crate) said: Said,
}

/// Something that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Its line, from 1 on.
    pub(crate) line: usize,
    /// What it is.
    pub(crate) what: What,
}

/// What may be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum What {
    /// It is not TOML.
    #[error("this is not TOML: {0}")]
    Syntax(String),
    /// There is no such option.
    #[error("there is no key `{key}`{}", meant.as_ref().map(|meant| format!(": `{meant}` may be meant")).unwrap_or_default())]
    Unknown { key: String, meant: Option<String> },
    /// Keys stand at the top.
    #[error("`{0}` is no table: keys stand at the top of the file, as options of `firkin up` are called")]
    Table(String),
    /// It is said in a way that options are not.
    #[error("`{key}` takes {wanted}")]
    Form { key: String, wanted: &'static str },
    /// The option would not take it.
    #[error("{0}")]
    Value(String),
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("cannot use the configuration `{}`: it is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It is not what it is thought to be.
    #[error("cannot use the configuration `{}`: it is longer than {MAX_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    /// Others may say how the server runs.
    #[error("cannot use the configuration `{}`: its mode {mode:o} lets other users write it", path.display())]
    Writable { path: PathBuf, mode: u32 },
    /// Whoever owns it may.
    #[error("cannot use the configuration `{}`: it belongs to user {uid}", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    /// What stands in it is wrong. There is at least one fault.
    #[error("cannot use the configuration `{}`: {}", path.display(), told(faults))]
    Faulty { path: PathBuf, faults: Vec<Fault> },
}

/// The first fault, and how many more there are.
fn told(faults: &[Fault]) -> String {
    let first = faults.first().map(|fault| format!("line {}: {}", fault.line, fault.what)).unwrap_or_default();
    if faults.len() > 1 { format!("{first}; and {} more", faults.len() - 1) } else { first }
}

impl FileError {
    /// What helps.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Writable { path, .. } => {
                Some(format!("`chmod go-w {}`, and look whether it says what you want", path.display()))
            }
            Self::Foreign { path, .. } => Some(format!("`chown root {}`", path.display())),
            Self::Faulty { path, .. } => Some(format!(
                "`firkin config check {}` lists what is wrong, `firkin config example` what may be said",
                path.display()
            )),
            Self::Read { .. } | Self::NotAFile(_) | Self::TooLong(_) => None,
        }
    }
}

/// Reads a file and understands it whole.
pub(crate) fn read(path: &Path) -> Result<File, FileError> {
    let text = text(path)?;
    understand(&text)
        .map(|entries| File { path: path.to_owned(), entries })
        .map_err(|faults| FileError::Faulty { path: path.to_owned(), faults })
}

fn text(path: &Path) -> Result<String, FileError> {
    let owned = || path.to_owned();
    let failed = |source| FileError::Read { path: owned(), source };
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(FileError::NotAFile(owned()));
    }
    let file = fs::File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.mode() & WRITABLE != 0 {
        return Err(FileError::Writable { path: owned(), mode: meta.mode() & 0o777 });
    }
    if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(FileError::Foreign { path: owned(), uid: meta.uid() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FileError::TooLong(owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = lines_before(error.as_bytes(), error.utf8_error().valid_up_to());
        let fault = Fault { line, what: What::Syntax("it is not UTF-8".to_owned()) };
        FileError::Faulty { path: owned(), faults: vec![fault] }
    })
}

/// What a text says, or everything that is wrong with it.
pub(crate) fn understand(text: &str) -> Result<Vec<Entry>, Vec<Fault>> {
    let line_of = |at: usize| lines_before(text.as_bytes(), at);
    let document = Document::parse(text).map_err(|error| {
        let line = line_of(error.span().map_or(0, |span| span.start));
        vec![Fault { line, what: What::Syntax(error.message().lines().collect::<Vec<_>>().join("; ")) }]
    })?;
    let known = keys();
    let (mut entries, mut faults) = (Vec::new(), Vec::new());
    for (name, item) in document.iter() {
        let at = document.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
        let line = line_of(at.map_or(0, |span| span.start));
        match entry(&known, name, item) {
            Ok((key, said)) => entries.push(Entry { key, line, said }),
            Err(what) => faults.push(Fault { line, what }),
        }
    }
    entries.sort_by_key(|entry| entry.line);
    faults.sort_by_key(|fault| fault.line);
    if faults.is_empty() { Ok(entries) } else { Err(faults) }
}

/// The line, from 1 on, of a place in a text.
fn lines_before(text: &[u8], at: usize) -> usize {
    text.iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn entry(known: &[Key], name: &str, item: &Item) -> Result<(Key, Said), What> {
    let Some(key) = known.iter().find(|key| key.name == name) else {
        return Err(match item {
            Item::Table(_) | Item::ArrayOfTables(_) if nearest(known, name).is_none() => What::Table(name.to_owned()),
            _ => What::Unknown { key: name.to_owned(), meant: nearest(known, name).map(str::to_owned) },
        });
    };
    let form = |wanted| What::Form { key: name.to_owned(), wanted };
    let said = match (key.takes, item.as_value()) {
        (Takes::Flag, Some(Value::Boolean(whether))) => Said::Flag(*whether.value()),
        (Takes::Flag, _) => return Err(form("`true` or `false`")),
        (Takes::Many, Some(Value::Array(all))) => {
            let each: Option<Vec<String>> = all.iter().map(scalar).collect();
            Said::Values(each.ok_or_else(|| form("a list of strings or numbers"))?)
        }
        (takes, value) => {
            let wanted = if takes == Takes::Many { "a string, a number, or a list of them" } else { "a string or a number" };
            Said::Values(vec![value.and_then(scalar).ok_or_else(|| form(wanted))?])
        }
    };
    match complaint(key, &said) {
        Some(complaint) => Err(What::Value(complaint)),
        None => Ok((key.clone(), said)),
    }
}

/// A value as it would be typed.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.value().clone()),
        Value::Integer(number) => Some(number.value().to_string()),
        Value::Float(number) => Some(number.value().to_string()),
        Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::InlineTable(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let faults = understand(text).unwrap_err();
        faults.iter().map(|fault| format!("{}: {}", fault.line, fault.what)).collect()
    }

    #[test]
    fn a_file_says_what_options_say() {
        let text = "# ours\nlisten = \"127.0.0.1:4000\"\n\nengine = [\"kvm\", \"gvisor\"]\nwarm = [4, \"ci=8\"]\ncpu-overcommit = 4\n\
                    allow-emulation = true\nencrypt-at-rest = false\nprepared = 1\n";
        let said: Vec<(usize, String)> = understand(text)
            .unwrap()
            .iter()
            .map(|entry| {
                let options = entry.said.options(&entry.key.name);
                (entry.line, options.iter().map(|option| option.to_str().unwrap()).collect::<Vec<_>>().join(" "))
            })
            .collect();
        let expected = [
            (2, "--listen=127.0.0.1:4000"),
            (4, "--engine=kvm --engine=gvisor"),
            (5, "--warm=4 --warm=ci=8"),
            (6, "--cpu-overcommit=4"),
            (7, "--allow-emulation"),
            (8, ""),
            (9, "--prepared=1"),
        ];
        assert_eq!(said, expected.map(|(line, option)| (line, option.to_owned())));
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_the_nearest_key() {
        let text = "listn = \"127.0.0.1:4000\"\nstate_dir = \"/s\"\nallow-emulation = \"yes\"\n\nlisten = 3000\nwarm-share = 101\n\
                    on-exit = \"explode\"\nwarm = [[1]]\nyes = true\napi-key = \"e2b_0123\"\n[limits]\nx = 1\n";
        let found = faults(text);
        for (found, expected) in found.iter().zip([
            "1: there is no key `listn`: `listen` may be meant",
            "2: there is no key `state_dir`: `state-dir` may be meant",
            "3: `allow-emulation` takes `true` or `false`",
            "5: invalid value '3000' for '--listen <ADDR:PORT>': invalid socket address syntax",
            "6: invalid value '101' for '--warm-share <PERCENT>': 101 is not in 0..=100",
            "7: invalid value 'explode' for '--on-exit <WHAT>' [possible values: kill, pause, leave]",
            "8: `warm` takes a list of strings or numbers",
            "9: there is no key `yes`",
            "10: there is no key `api-key`: `api-key-file` may be meant",
            "11: `limits` is no table: keys stand at the top of the file, as options of `firkin up` are called",
        ]) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.len(), 10);
        assert!(!found.concat().contains("e2b_0123"), "what may be a secret is not repeated");
        assert!(faults("a = 1\na = 2")[0].starts_with("2: this is not TOML"), "{:?}", faults("a = 1\na = 2"));
        assert!(faults("engine = [\"kvm\"")[0].contains("this is not TOML"));
    }

    #[test]
    fn a_file_that_others_may_write_or_that_is_none_is_refused_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firkin.toml");
        assert!(matches!(read(&path), Err(FileError::Read { .. })));
        assert!(matches!(read(dir.path()), Err(FileError::NotAFile(_))));
        let write = |text: &[u8], mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o620, 0o602, 0o666] {
            write(b"", mode);
            let error = read(&path).unwrap_err();
            assert!(matches!(error, FileError::Writable { mode: found, .. } if found == mode), "{error}");
            assert!(error.hint().unwrap().starts_with("`chmod go-w"));
        }
        write(b"engine = \"gvisor\"\n", 0o644);
        assert_eq!(read(&path).unwrap().entries.len(), 1);
        write(b"a = 1\n\xff", 0o644);
        let error = read(&path).unwrap_err().to_string();
        assert!(error.ends_with("line 2: this is not TOML: it is not UTF-8"), "{error}");
        write(&vec![b'#'; 257 << 10], 0o644);
        assert!(matches!(read(&path), Err(FileError::TooLong(_))));
        write(b"listn = 1\nx = 2\n", 0o644);
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains("line 1: there is no key `listn`: `listen` may be meant; and 1 more"), "{error}");
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(&path, Some(1.into()), None).unwrap();
            assert!(matches!(read(&path), Err(FileError::Foreign { uid: 1, .. })));
        }
    }
}
