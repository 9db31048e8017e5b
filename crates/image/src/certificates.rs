//! The authorities that an administrator of this host trusts beside Debian's, for guests to trust too.
//!
//! Where a network opens every TLS connection with an authority of its own, nothing in a guest reaches a package index or a
//! repository unless it trusts that authority as the host does. It is trusted when asked for, at the time an image is made, in
//! every way that programs look for it: the system's store, and the variables by which Python, Node and curl are told of another
//! than the one they bring.

use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use firkin_files::authorities::{BUNDLE, OWN};
use fs_err as fs;

/// A certificate has two kilobytes.
const MAX_FILE_BYTES: u64 = 256 << 10;
/// Debian's authorities have a quarter of a megabyte.
const MAX_BUNDLE_BYTES: u64 = 8 << 20;
/// More than any administrator has put there.
const MAX_FILES: usize = 256;
const MAX_DEPTH: usize = 8;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
/// Programs that bring authorities of their own, and how each is told of others.
const VARIABLES: [&str; 6] =
    ["CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"];

/// Why the host's authorities cannot be trusted in guests.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file or directory cannot be read.
    #[error("cannot read this host's own certificates")]
    Read(#[from] std::io::Error),
    /// A file is not what belongs there.
    #[error("cannot use `{path}` as a certificate: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// There is nothing to trust.
    #[error("cannot find a certificate in `{OWN}`; put the authority there as a file `*.crt` in PEM format")]
    None,
}

/// A path of the guest or the host within a root.
fn below_root(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// The certificates of this host's own authorities, PEM each, in the order of their files' names. `root` is `/`.
pub fn host_certificates(root: &Path) -> Result<Vec<String>, CertificateError> {
    let mut files = Vec::new();
    collect(&root.join(below_root(OWN)), 0, &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let unusable = |reason| CertificateError::Unusable { path: path.clone(), reason };
        let mut text = String::new();
        let read = fs::File::open(&path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
        read.map_err(|_| unusable("it is not text in PEM format"))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(unusable("it is larger than 256 KiB"));
        }
        let before = found.len();
        let mut rest = text.as_str();
        // Only the certificates: a private key that lies beside one stays where it is.
        while let Some(begin) = rest.find(BEGIN) {
            let end = rest[begin..].find(END).ok_or_else(|| unusable("it ends within a certificate"))?;
            let (block, after) = rest[begin..].split_at(end + END.len());
            found.push(format!("{block}\n"));
            rest = after;
        }
        if found.len() == before {
            return Err(unusable("it has no certificate in PEM format"));
        }
    }
    if found.is_empty() { Err(CertificateError::None) } else { Ok(found) }
}

fn collect(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), CertificateError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && depth < MAX_DEPTH {
            collect(&path, depth + 1, files)?;
        } else if path.extension().is_some_and(|extension| extension == "crt") {
            if files.len() == MAX_FILES {
                return Err(CertificateError::Unusable { path, reason: "there are more than 256 of them" });
            }
            files.push(path);
        }
    }
    Ok(())
}

/// The variables that sandboxes get whose image trusts other authorities than programs bring.
pub fn certificate_variables() -> impl Iterator<Item = (String, String)> {
    VARIABLES.iter().map(|name| ((*name).to_owned(), BUNDLE.to_owned()))
}

/// Writes certificates, each in a file of its own, as `update-ca-certificates` wants them, and gives the files.
pub(crate) fn write(certificates: &[String], directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    fs::create_dir(directory)?;
    let write = |(certificate, number): (&String, usize)| {
        let path = directory.join(file(number));
        fs::write(&path, certificate)?;
        // Every user of a guest reads them, whatever mask we run with.
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        Ok(path)
    };
    certificates.iter().zip(1..).map(write).collect()
}

fn file(number: usize) -> String {
    format!("firkin-host-{number}.crt")
}

/// Certificates as one more layer over the files of a container image, of which nothing is run: where its distribution would take
/// them from, and a store of `trusted` and them.
pub(crate) fn layer(certificates: &[String], trusted: &str) -> std::io::Result<std::fs::File> {
    let mut archive = tar::Builder::new(tempfile::tempfile()?);
    let mut append = |path: &str, content: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content.as_bytes())
    };
    for (certificate, number) in certificates.iter().zip(1..) {
        append(&format!("{}/{}", below_root(OWN), file(number)), certificate)?;
    }
    append(below_root(BUNDLE), &format!("{trusted}\n{}", certificates.concat()))?;
    let mut file = archive.into_inner()?;
    file.rewind()?;
    Ok(file)
}

/// All authorities that this host trusts: Debian's and its own. Empty where there is no such file.
pub(crate) fn host_bundle() -> std::io::Result<String> {
    let mut text = String::new();
    match fs::File::open(BUNDLE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        file => drop(file?.take(MAX_BUNDLE_BYTES).read_to_string(&mut text)?),
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nb25l\n-----END CERTIFICATE-----\n";
    const TWO: &str = "-----BEGIN CERTIFICATE-----\ndHdv\n-----END CERTIFICATE-----\n";

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(below_root(OWN)).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn only_certificates_are_taken_and_all_of_them() {
        let key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        let dir = host(&[("b/both.crt", &format!("{key}# a comment\n{TWO}{ONE}")), ("a.crt", ONE), ("notes.txt", "x")]);
        assert_eq!(host_certificates(dir.path()).unwrap(), [ONE, TWO, ONE]);
    }

    #[test]
    fn what_is_no_certificate_is_named_and_nothing_is_not_enough() {
        for (content, reason) in
            [("", "no certificate"), ("-----BEGIN CERTIFICATE-----\nb25l\n", "ends within"), (&"x".repeat(300 << 10), "larger")]
        {
            let dir = host(&[("wrong.crt", content)]);
            let error = host_certificates(dir.path()).unwrap_err().to_string();
            assert!(error.contains("wrong.crt") && error.contains(reason), "{error}");
        }
        assert!(matches!(host_certificates(host(&[]).path()), Err(CertificateError::None)));
        assert!(matches!(host_certificates(host(&[("a.pem", ONE)]).path()), Err(CertificateError::None)));
    }
}
