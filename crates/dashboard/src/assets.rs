//! Style and scripts, all of them our own, each under a name that has its digest: a browser may keep them for ever, and one that has an
//! older page asks for what that page was made for.

use std::sync::LazyLock;

use sha2::{Digest as _, Sha256};

/// Below this path the files are asked for.
pub const PATH: &str = "/ui/assets/";

/// What a page may do: load what this server has beside it, and nothing from elsewhere. No script and no style stands in a page, so
/// none is allowed there; and markup gets into a page by one function of our own, which takes what this server rendered.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                          form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; \
                          trusted-types firkin";

/// Digits of a digest in a name: enough that two versions never share one.
const DIGITS: usize = 16;

/// One file.
#[derive(Debug)]
pub struct Asset {
    /// Its name, with its digest.
    pub name: String,
    /// Its media type.
    pub media_type: &'static str,
    /// What is in it.
    pub text: &'static str,
    stem: &'static str,
}

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

static ALL: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let files = [
        ("style", "css", CSS, include_str!("../assets/style.css")),
        ("confirm", "js", JAVASCRIPT, include_str!("../assets/confirm.js")),
        ("list", "js", JAVASCRIPT, include_str!("../assets/list.js")),
        ("live", "js", JAVASCRIPT, include_str!("../assets/live.js")),
        ("terminal", "js", JAVASCRIPT, include_str!("../assets/terminal.js")),
    ];
    let asset = |(stem, extension, media_type, text): (&'static str, &str, &'static str, &'static str)| {
        let digest: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Asset { name: format!("{stem}.{}.{extension}", &digest[..DIGITS]), media_type, text, stem }
    };
    files.map(asset).into()
});

/// The file with this name.
pub fn named(name: &str) -> Option<&'static Asset> {
    ALL.iter().find(|asset| asset.name == name)
}

/// Where a page finds a file of ours.
pub(crate) fn path(stem: &str) -> String {
    let asset = ALL.iter().find(|asset| asset.stem == stem).expect("pages ask for files that there are");
    format!("{PATH}{}", asset.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_the_names_that_pages_have() {
        for asset in ALL.iter() {
            assert_eq!(named(path(asset.stem).strip_prefix(PATH).unwrap()).unwrap().text, asset.text);
        }
        assert!(named("style.css").is_none() && named("../Cargo.toml").is_none());
    }

    #[test]
    fn nothing_is_allowed_that_a_strangers_markup_would_need() {
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("data:") && !POLICY.contains('*') && !POLICY.contains("http"));
    }

    #[test]
    fn scripts_make_no_markup_but_by_the_one_function() {
        for asset in ALL.iter().filter(|asset| asset.media_type == JAVASCRIPT) {
            for sink in
                ["eval(", "Function(", "document.write", "outerHTML", "insertAdjacentHTML", "javascript:", "setAttribute(\"on"]
            {
                assert!(!asset.text.contains(sink), "{} has {sink}", asset.stem);
            }
            assert!(asset.stem == "live" || !asset.text.contains("innerHTML"), "{}", asset.stem);
        }
    }
}
