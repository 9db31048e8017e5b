//! How templates and snapshots are named: `[team/]name[:tag]` or `id[:tag]`. A name or an id without a tag means its tag `default`.
//!
//! A template has one id and at most one name. Each of its tags stands for what one build made; what no tag stands for is gone.

/// The slug that stands before `/` in full names. There is one team.
pub const TEAM: &str = "firkin";

/// The tag that a name without one means. It cannot be removed: the template would have no name.
pub const DEFAULT: &str = "default";

/// The longest name.
const MAX_NAME_LENGTH: usize = 128;

/// The template that stands for no use in particular, which every host has.
pub const BASE: &str = "base";

/// The template that E2B's code interpreter SDK asks for.
pub const CODE_INTERPRETER: &str = "code-interpreter-v1";

/// The template that E2B's SDKs ask for when a sandbox is created with `mcp`.
pub const MCP_GATEWAY: &str = "mcp-gateway";

/// The template that E2B's desktop SDK asks for.
pub const DESKTOP: &str = "desktop";

/// Templates that clients ask for by name although their users have not built any such.
pub const STANDARD: [&str; 4] = [BASE, CODE_INTERPRETER, MCP_GATEWAY, DESKTOP];

/// A reference, taken apart. Letters count as small ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Name or id.
    pub(crate) base: String,
    /// As it was given.
    pub(crate) tag: Option<String>,
}

impl Reference {
    /// Takes it apart, whatever it is: what nothing can be called is found nowhere.
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.trim().to_lowercase();
        let bare = text.strip_prefix(TEAM).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&text);
        let (base, tag) = bare.split_once(':').map_or((bare, None), |(base, tag)| (base, Some(tag.to_owned())));
        Self { base: base.to_owned(), tag }
    }

    /// The tag that is meant.
    pub(crate) fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT)
    }

    /// A tag that is not the one of the bare name.
    pub(crate) fn other_tag(&self) -> Option<&str> {
        self.tag.as_deref().filter(|tag| *tag != DEFAULT)
    }

    /// Whether anything can be called so.
    pub(crate) fn is_valid(&self) -> bool {
        valid_name(&self.base)
    }

    /// How it is on record.
    pub(crate) fn full(&self) -> String {
        format!("{}:{}", self.base, self.tag())
    }
}

/// A name without the tag that it means anyway.
pub fn short(name: &str) -> &str {
    name.strip_suffix(DEFAULT).and_then(|name| name.strip_suffix(':')).unwrap_or(name)
}

/// A reference that leads to no template or snapshot. In the contract's words, and what to do then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTemplate {
    /// No template or snapshot by that name or id.
    #[error("template '{0}' not found{hint}", hint = how_to_build(.0))]
    Absent(String),
    /// The template has no such tag.
    #[error("tag '{tag}' does not exist for template '{template}'; {}", known_tags(tags))]
    NoTag {
        /// The template as it was named, without the tag.
        template: String,
        /// The tag.
        tag: String,
        /// Those that it has.
        tags: Vec<String>,
    },
}

/// The hint for a template that does not exist: the command that builds it, if it is a standard template.
pub(crate) fn how_to_build(reference: &str) -> String {
    let base = Reference::parse(reference).base;
    if STANDARD.contains(&base.as_str()) { format!("; build it with `firkin template build {base}`") } else { String::new() }
}

/// Whether a text may name a template or a snapshot: `^[a-z0-9_-]+$`.
pub fn valid_name(name: &str) -> bool {
    (1..=MAX_NAME_LENGTH).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// Tags that are named, of a template that has many.
const NAMED_TAGS: usize = 8;

fn known_tags(tags: &[String]) -> String {
    if tags.is_empty() {
        return "no build of it has finished".to_owned();
    }
    let more = if tags.len() > NAMED_TAGS { ", and more" } else { "" };
    let named: Vec<String> = tags.iter().take(NAMED_TAGS).map(|tag| format!("`{tag}`")).collect();
    format!("it has {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_taken_apart() {
        for (text, base, tag, full) in [
            ("base", "base", None, "base:default"),
            ("firkin/Base:V1", "base", Some("v1"), "base:v1"),
            ("base:default", "base", Some("default"), "base:default"),
        ] {
            let found = Reference::parse(text);
            assert_eq!((found.base.as_str(), found.tag.as_deref(), found.full().as_str()), (base, tag, full));
            assert!(found.is_valid());
        }
        assert_eq!(Reference::parse("base:default").other_tag(), None);
        assert_eq!(["base", "base:default", "base:v1", "default"].map(short), ["base", "base", "base:v1", "default"]);
        for bad in ["other/base", "", ":v1", "a b"] {
            assert!(!Reference::parse(bad).is_valid(), "{bad:?}");
        }
    }
}
