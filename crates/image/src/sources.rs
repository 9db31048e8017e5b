//! Where this machine gets Debian packages from, read from apt's own configuration.
//!
//! The root file system, and the newer QEMU of a Debian 12 host, come from the mirror that the machine's owner chose, checked
//! with the keyring that the owner trusts. Both formats of apt's source files are read (sources.list(5)): one-line and deb822.
//! apt tells the origin of each index it has fetched (`apt-get indextargets`), which separates Debian from third parties;
//! before the first `apt-get update` the keyring and the path of a source tell it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{CommandError, capture, command};

/// Beyond this a source file is not one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One source: every suite at every URI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Whether it offers binary packages (`deb`).
    pub binary: bool,
    /// Base URIs.
    pub uris: Vec<String>,
    /// Suites, such as `bookworm`.
    pub suites: Vec<String>,
    /// Components, such as `main`.
    pub components: Vec<String>,
    /// Path of a keyring, or a key itself.
    pub signed_by: Option<String>,
}

/// An index that apt has fetched or would fetch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexTarget {
    /// Base URI with a final slash.
    pub repo_uri: String,
    /// The suite as the source names it.
    pub release: String,
    /// `Debian` for Debian's own; empty before the index is fetched.
    pub origin: String,
    /// Where the index is, or would be.
    pub filename: PathBuf,
}

/// A mirror of one Debian archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Base URI.
    pub uri: String,
    /// Path of the keyring that signs it, or a key itself. Absent: apt's default keyrings.
    pub signed_by: Option<String>,
}

/// The Debian archives that this machine uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive, which also has updates and backports.
    pub main: Mirror,
    /// The security archive.
    pub security: Option<Mirror>,
    /// The code name of the machine's own release, such as `bookworm`.
    pub codename: String,
}

/// Why the Debian mirror of this machine is not known.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// A file of apt's configuration, or one it names, cannot be read.
    #[error("cannot read the package sources of this machine")]
    Read(#[source] std::io::Error),
    /// apt does not tell its index files.
    #[error("cannot ask apt for its indexes")]
    Targets(#[source] CommandError),
    /// The machine does not run Debian.
    #[error("cannot find a Debian release in `{path}`: it names `{id}`; a Debian 12 or newer host is needed")]
    NotDebian {
        /// The file that names the release.
        path: PathBuf,
        /// The system that it names.
        id: String,
    },
    /// No source is Debian's own main archive.
    #[error("cannot find Debian's `{codename} main` among the package sources in `{path}`; add it there")]
    NoMirror {
        /// The release.
        codename: String,
        /// apt's configuration directory.
        path: PathBuf,
    },
}

/// Finds this machine's Debian mirrors. `root` is `/`, or the root of a file system to look into.
pub async fn mirrors(root: &Path) -> Result<Mirrors, SourcesError> {
    let codename = codename(root)?;
    let apt = root.join("etc/apt");
    let sources = read(&apt).map_err(SourcesError::Read)?;
    let targets = index_targets().await.map_err(SourcesError::Targets)?;
    find(&sources, &targets, &codename).ok_or(SourcesError::NoMirror { codename, path: apt })
}

/// The code name of the Debian release that is installed at `root`.
pub fn codename(root: &Path) -> Result<String, SourcesError> {
    let path = root.join("etc/os-release");
    let text = read_bounded(&path).map_err(SourcesError::Read)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned()).unwrap_or_default()
    };
    let (id, codename) = (value("ID"), value("VERSION_CODENAME"));
    if id == "debian" && !codename.is_empty() { Ok(codename) } else { Err(SourcesError::NotDebian { path, id }) }
}

/// Reads all sources below apt's configuration directory.
pub fn read(apt: &Path) -> std::io::Result<Vec<Source>> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs_err::read_dir(apt.join("sources.list.d")) {
        for entry in entries {
            files.push(entry?.path());
        }
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_one_line(&read_bounded(file)?)),
            Some("sources") => sources.extend(parse_deb822(&read_bounded(file)?)),
            _ => {}
        }
    }
    for source in &mut sources {
        resolve_mirror_lists(&mut source.uris)?;
    }
    Ok(sources)
}

/// Cloud images name a file with mirrors (`mirror+file:`) instead of a mirror: takes its first one.
fn resolve_mirror_lists(uris: &mut [String]) -> std::io::Result<()> {
    for uri in uris {
        let Some(path) = uri.strip_prefix("mirror+file:") else { continue };
        let text = read_bounded(Path::new(path.trim_start_matches("//")))?;
        let first = text.lines().filter_map(|line| line.split_whitespace().next()).find(|word| !word.starts_with('#'));
        if let Some(first) = first {
            *uri = first.to_owned();
        }
    }
    Ok(())
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let bytes = fs_err::metadata(path)?.len();
    if bytes > MAX_FILE_BYTES {
        let message = format!("`{}` has {bytes} bytes, more than {MAX_FILE_BYTES}", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
    }
    fs_err::read_to_string(path)
}

/// Asks apt which package indexes its sources have.
pub async fn index_targets() -> Result<Vec<IndexTarget>, CommandError> {
    let mut ask = command("apt-get");
    ask.args(["indextargets", "Created-By: Packages"]);
    let text = capture(ask, Duration::from_secs(60)).await?;
    Ok(stanzas(&text)
        .map(|fields| IndexTarget {
            repo_uri: fields.get("repo-uri"),
            release: fields.get("release"),
            origin: fields.get("origin"),
            filename: fields.get("filename").into(),
        })
        .collect())
}

/// The sources of a one-line file.
pub fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let (kind, mut rest) = line.split_once(char::is_whitespace)?;
    let mut signed_by = None;
    if let Some((options, after)) = rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    let binary = match kind {
        "deb" => true,
        "deb-src" => false,
        _ => return None,
    };
    Some(Source { binary, uris: vec![uri], suites: vec![suite], components: words.collect(), signed_by })
}

/// The enabled sources of a deb822 file.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    stanzas(text)
        .filter(|fields| !matches!(fields.get("enabled").as_str(), "no" | "false" | "0"))
        .map(|fields| Source {
            binary: words(fields.get("types")).iter().any(|kind| kind == "deb"),
            uris: words(fields.get("uris")),
            suites: words(fields.get("suites")),
            components: words(fields.get("components")),
            signed_by: Some(fields.get("signed-by")).filter(|value| !value.is_empty()),
        })
        .filter(|source| !source.uris.is_empty() && !source.suites.is_empty())
        .collect()
}

/// The fields of one stanza of the format that apt and dpkg write everything in (deb822(5)).
#[derive(Debug, Default)]
pub(crate) struct Stanza(Vec<(String, String)>);

impl Stanza {
    /// The value of a field, empty if it is absent. `name` in lower case.
    pub(crate) fn get(&self, name: &str) -> String {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    }
}

/// Splits a text into its stanzas. Comment lines are dropped wherever they stand, continuation lines are kept with their
/// line ends.
pub(crate) fn stanzas(text: &str) -> impl Iterator<Item = Stanza> {
    let mut all = vec![Stanza::default()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let current = all.last_mut().expect("never empty");
        if line.trim().is_empty() {
            if !current.0.is_empty() {
                all.push(Stanza::default());
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = current.0.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            current.0.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    all.into_iter().filter(|stanza| !stanza.0.is_empty())
}

/// Picks Debian's own archives out of the sources.
fn find(sources: &[Source], targets: &[IndexTarget], codename: &str) -> Option<Mirrors> {
    let main = best(sources, targets, codename, "debian")?;
    let security = best(sources, targets, &format!("{codename}-security"), "debian-security");
    Some(Mirrors { main, security, codename: codename.to_owned() })
}

/// The mirror of `suite main` that is most surely Debian's.
fn best(sources: &[Source], targets: &[IndexTarget], suite: &str, directory: &str) -> Option<Mirror> {
    let same_suite = |named: &String| named.trim_end_matches("/updates") == suite;
    let candidates = sources
        .iter()
        .filter(|source| source.binary && source.suites.iter().any(same_suite))
        .filter(|source| source.components.iter().any(|component| component == "main"))
        .flat_map(|source| source.uris.iter().map(move |uri| (source, uri)));
    let ranked = candidates.filter_map(|(source, uri)| {
        let base = uri.trim_end_matches('/');
        let target = targets.iter().find(|target| target.repo_uri.trim_end_matches('/') == base && target.release == suite);
        let debian_keyring = source.signed_by.as_deref().is_some_and(|path| path.contains("debian-archive"));
        let debian_path = base.rsplit('/').next() == Some(directory);
        let rank = match target.map(|target| target.origin.as_str()) {
            Some("Debian") => 3,
            Some("") | None if debian_keyring => 2,
            Some("") | None if debian_path && source.signed_by.is_none() => 1,
            _ => return None,
        };
        Some((rank, Mirror { uri: uri.clone(), signed_by: source.signed_by.clone() }))
    });
    // The first of the best, as apt itself prefers earlier sources.
    ranked.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, mirror)| mirror)
}

impl Mirror {
    /// A deb822 stanza for suites of this mirror.
    pub fn stanza(&self, suites: &[&str]) -> String {
        let mut text = format!("Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n", self.uri, suites.join(" "));
        if let Some(signed_by) = &self.signed_by {
            // A key itself spans lines, and stands on its own ones.
            let separator = if signed_by.contains('\n') { "\n " } else { " " };
            text.push_str(&format!("Signed-By:{separator}{signed_by}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# A comment
Types: deb deb-src
# comment inside
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.test/debian-security/
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
";

    #[test]
    fn deb822_sources_are_read() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2);
        assert!(sources[0].binary);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/usr/share/keyrings/debian-archive-keyring.gpg"));
        assert_eq!(sources[1].uris, ["http://mirror.test/debian-security/"]);
        assert_eq!(sources[1].signed_by, None);
    }

    #[test]
    fn an_inline_key_survives() {
        let text =
            "Types: deb\nURIs: http://a.test/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n x\n";
        let source = &parse_deb822(text)[0];
        assert_eq!(source.signed_by.as_deref(), Some("-----BEGIN\n .\n x"));
    }

    #[test]
    fn one_line_sources_are_read() {
        let text = "# c\n\ndeb [arch=amd64 signed-by=/k.gpg] http://a.test/debian bookworm main contrib # tail\n\
                    deb-src http://a.test/debian bookworm main\nnonsense\ndeb http://short.test\n";
        let sources = parse_one_line(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert!(!sources[1].binary);
    }

    fn source(uri: &str, suite: &str, signed_by: Option<&str>) -> Source {
        let signed_by = signed_by.map(str::to_owned);
        Source { binary: true, uris: vec![uri.into()], suites: vec![suite.into()], components: vec!["main".into()], signed_by }
    }

    fn target(uri: &str, release: &str, origin: &str) -> IndexTarget {
        IndexTarget { repo_uri: uri.into(), release: release.into(), origin: origin.into(), filename: PathBuf::new() }
    }

    #[test]
    fn the_origin_tells_debian_from_third_parties() {
        let sources = [
            source("http://tools.test/debian", "bookworm", Some("/keys/tools.gpg")),
            source("http://near.test/mirrors/deb", "bookworm", None),
        ];
        let targets = [
            target("http://tools.test/debian/", "bookworm", "Tools Inc"),
            target("http://near.test/mirrors/deb/", "bookworm", "Debian"),
        ];
        assert_eq!(find(&sources, &targets, "bookworm").unwrap().main.uri, "http://near.test/mirrors/deb");
    }

    #[test]
    fn before_the_first_update_keyring_and_path_tell() {
        let third = source("http://tools.test/debian", "bookworm", Some("/keys/tools.gpg"));
        let keyed = source("http://near.test/x", "bookworm", Some("/usr/share/keyrings/debian-archive-keyring.gpg"));
        let plain = source("http://near.test/debian/", "bookworm", None);
        let security = source("http://near.test/debian-security", "bookworm-security", None);
        let found = |sources: &[Source]| find(sources, &[], "bookworm").map(|mirrors| mirrors.main.uri);
        assert_eq!(found(std::slice::from_ref(&third)), None);
        assert_eq!(found(&[third.clone(), plain.clone()]).as_deref(), Some("http://near.test/debian/"));
        assert_eq!(found(&[third, plain.clone(), keyed]).as_deref(), Some("http://near.test/x"));
        let both = find(&[plain, security], &[], "bookworm").unwrap();
        assert_eq!(both.security.unwrap().uri, "http://near.test/debian-security");
    }

    #[test]
    fn a_stanza_reads_back() {
        let mirror = Mirror { uri: "http://a.test/debian".into(), signed_by: Some("/k.gpg".into()) };
        let sources = parse_deb822(&mirror.stanza(&["bookworm", "bookworm-updates"]));
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(sources[0].suites.len(), 2);
        let inline = Mirror { uri: "http://a.test/debian".into(), signed_by: Some("-----BEGIN\n .\n x".into()) };
        assert!(inline.stanza(&["bookworm"]).contains("Signed-By:\n -----BEGIN\n .\n x\n"));
    }

    #[test]
    fn cloud_images_name_a_file_of_mirrors() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("debian.list");
        fs_err::write(&list, "# mirrors\nhttp://near.test/debian\tpriority:1\nhttp://far.test/debian\n").unwrap();
        let mut uris = [format!("mirror+file://{}", list.display())];
        resolve_mirror_lists(&mut uris).unwrap();
        assert_eq!(uris, ["http://near.test/debian"]);
    }
}
