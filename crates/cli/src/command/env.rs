//! `firkin env`: what points the official SDKs at the server, for `eval`.

use std::collections::BTreeMap;

use crate::{
    failure::ExitStatus,
    output,
    serverfile::{self, Target},
    settings::{ServerSource, Settings},
};

/// Prints the lines. They are for a shell even when piped, which is their use; JSON comes on demand only.
pub(crate) fn run(settings: &Settings, json: bool) -> anyhow::Result<ExitStatus> {
    // What the variables say already needs no telling: only the server's own files count here.
    let target = serverfile::find(&Settings { server: ServerSource::StateDir, ..settings.clone() })?;
    let variables = variables(&target);
    if json {
        output::json(&variables)?;
    } else {
        output::text(&exports(&variables))?;
    }
    Ok(ExitStatus::Success)
}

/// What names the certificates that programs trust, so that `https://` of `get_host()` is: OpenSSL and Python, curl, Python's `requests`,
/// Node.js. The middle two come before the first where a shell has them already, and `requests` knows no other.
const TRUST: [&str; 4] = ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"];

fn variables(target: &Target) -> BTreeMap<&'static str, String> {
    let mut variables = BTreeMap::from([
        ("E2B_API_KEY", target.api_key.clone()),
        ("E2B_API_URL", target.api_url.clone()),
        ("E2B_SANDBOX_URL", target.sandbox_url.clone()),
        // SDKs look for the content of volumes elsewhere unless they are told.
        ("E2B_VOLUME_API_URL", target.api_url.clone()),
    ]);
    if let Some(https) = &target.https {
        variables.insert("E2B_DOMAIN", https.domain.clone());
        if let Some(bundle) = &https.bundle {
            for name in TRUST {
                variables.insert(name, bundle.display().to_string());
            }
        }
    }
    variables
}

fn exports(variables: &BTreeMap<&str, String>) -> String {
    variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
}

/// A word that any POSIX shell reads as `text`.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:/@%+=".contains(&b));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serverfile::Https;

    #[test]
    fn the_lines_are_what_a_shell_evaluates() {
        let url = "http://127.0.0.1:3000".to_owned();
        let target = Target { api_url: url.clone(), sandbox_url: url, api_key: "e2b_0a".to_owned(), https: None };
        assert_eq!(
            exports(&variables(&target)),
            "export E2B_API_KEY=e2b_0a\n\
             export E2B_API_URL=http://127.0.0.1:3000\n\
             export E2B_SANDBOX_URL=http://127.0.0.1:3000\n\
             export E2B_VOLUME_API_URL=http://127.0.0.1:3000\n"
        );
        let https = Https { domain: "firkin.localhost:3443".to_owned(), bundle: Some("/s/tls/bundle.pem".into()) };
        let secure = exports(&variables(&Target { https: Some(https), ..target }));
        assert!(secure.contains("export E2B_DOMAIN=firkin.localhost:3443\n"), "{secure}");
        for name in TRUST {
            assert!(secure.contains(&format!("export {name}=/s/tls/bundle.pem\n")), "{secure}");
        }
        assert_eq!(quoted("a b'c;$d"), r"'a b'\''c;$d'");
        assert_eq!(quoted("[::1]"), "'[::1]'");
    }
}
