//! How templates and snapshots are named: `[team/]name[:tag]` or `id[:tag]`. A name or an id without a tag means its tag `default`.
//!
//! A template has one id and at most one name. Each of its tags stands for what one build made; what no tag stands for is gone.
//!
//! Names are taken apart and put together here and nowhere else, so that what can be given to something can also be looked up. What
//! is given is read more strictly in one thing: a tag in the form of a build's id could not be told from that id.

use std::{fmt, str::FromStr};

use super::{
    random::is_uuid,
    team::{MAX_TEAM_BYTES, Scope, TeamId},
    text::text_type,
};

/// The tag that a name without one means. It cannot be removed: the template would have no name.
pub const DEFAULT: &str = "default";

/// The longest name.
const MAX_NAME_BYTES: usize = 128;

/// The longest tag.
const MAX_TAG_BYTES: usize = 128;

/// The longest text that means anything: team, name and tag.
pub const MAX_REFERENCE_BYTES: usize = MAX_TEAM_BYTES + 1 + MAX_NAME_BYTES + 1 + MAX_TAG_BYTES;

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

/// A text that nothing can be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// Not a name.
    #[error(
        "`{0}` is not a name for a template or snapshot: it must be 1 to {MAX_NAME_BYTES} lower-case letters, digits, `-` and `_`"
    )]
    Name(String),
    /// Not a tag.
    #[error(
        "`{0}` is not a tag: it must be 1 to {MAX_TAG_BYTES} lower-case letters, digits, `-`, `_` and `.`, and not a build's id"
    )]
    Tag(String),
}

/// As much of a text as an error repeats.
fn told(text: impl AsRef<str>) -> String {
    text.as_ref().chars().take(MAX_REFERENCE_BYTES).collect()
}

text_type! {
    /// What a template or a snapshot is called, without team and tag. An id has the same form.
    pub struct TemplateName where is_name, else InvalidReference = |text| InvalidReference::Name(told(text))
}

text_type! {
    /// One of a template's tags.
    pub struct Tag where is_tag, else InvalidReference = |text| InvalidReference::Tag(told(text))
}

pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_tag(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=MAX_TAG_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

impl Tag {
    /// Reads a tag that something is to be given.
    pub(crate) fn given(text: &str) -> Result<Self, InvalidReference> {
        let text = plain(text);
        if is_uuid(&text) { Err(InvalidReference::Tag(text)) } else { Self::try_from(text) }
    }

    /// Reads tags that something is to be given, each once.
    pub(crate) fn all_given<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Self>, InvalidReference> {
        let mut tags = Vec::new();
        for text in texts {
            let tag = Self::given(text)?;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        Ok(tags)
    }

    /// Whether it is what a name without a tag means.
    pub(crate) fn is_default(&self) -> bool {
        self.0 == DEFAULT
    }
}

impl Default for Tag {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

/// What leads to a template, to one of its builds, or to a snapshot, among those of one team: a name or an id, and a tag if one was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    /// Name or id.
    pub name: TemplateName,
    /// As it was given.
    pub tag: Option<Tag>,
}

/// A name as others are told it: behind its team.
pub fn with_team(team: &TeamId, name: impl fmt::Display) -> String {
    format!("{team}/{name}")
}

/// Letters count as small ones, and space around a word as none.
fn plain(text: &str) -> String {
    text.trim().to_lowercase()
}

/// Reads whatever may be on record.
impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let text = text.trim();
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(InvalidReference::Name(told(text)));
        }
        let (name, tag) = text.split_once(':').map_or((text, None), |(name, tag)| (name, Some(tag)));
        // The text as it was given tells more than what is left of it.
        let name = plain(name).parse().map_err(|_| InvalidReference::Name(told(text)))?;
        Ok(Self { name, tag: tag.map(|tag| Tag::try_from(plain(tag))).transpose()? })
    }
}

/// A reference as somebody writes it, perhaps behind the team whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// The team, if one was named.
    pub team: Option<TeamId>,
    /// Among those of that team, else of who asks.
    pub reference: Reference,
}

/// Reads whatever may be looked up.
impl FromStr for Sought {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let trimmed = text.trim();
        let Some((team, rest)) = trimmed.split_once('/').filter(|_| trimmed.len() <= MAX_REFERENCE_BYTES) else {
            return Ok(Self { team: None, reference: text.parse()? });
        };
        let malformed = || InvalidReference::Name(told(trimmed));
        let team = plain(team).parse().map_err(|_| malformed())?;
        let reference = rest.parse().map_err(|error| match error {
            InvalidReference::Name(_) => malformed(),
            InvalidReference::Tag(_) => error,
        })?;
        Ok(Self { team: Some(team), reference })
    }
}

impl From<Reference> for Sought {
    fn from(reference: Reference) -> Self {
        Self { team: None, reference }
    }
}

impl Sought {
    /// Reads a text that is looked up: what nothing can be called is found nowhere.
    pub(crate) fn wanted(text: &str) -> Result<Self, NoTemplate> {
        text.parse().map_err(|_| NoTemplate::Absent(text.to_owned()))
    }
}

impl Reference {
    /// Reads a name of the first team's, which may stand behind that: what a host's configuration names.
    pub fn of_first(text: &str) -> Result<Self, InvalidReference> {
        let Sought { team, reference } = text.parse()?;
        if team.is_none_or(|team| team.is_first()) { Ok(reference) } else { Err(InvalidReference::Name(told(text))) }
    }

    /// Reads a name that something of `scope` is to be given. It may stand behind the scope's own team, and no other.
    pub(crate) fn given(scope: &Scope, text: &str) -> Result<Self, InvalidReference> {
        let Sought { team, reference } = text.parse()?;
        if team.is_some_and(|team| team != scope.owner()) {
            return Err(InvalidReference::Name(told(text)));
        }
        let tag = reference.tag.as_ref().map(|tag| Tag::given(tag.as_str())).transpose()?;
        Ok(Self { tag, ..reference })
    }

    /// The tag that is meant.
    pub fn tag(&self) -> &str {
        self.tag.as_ref().map_or(DEFAULT, Tag::as_str)
    }

    /// A tag that is not the one of the bare name.
    pub fn other_tag(&self) -> Option<&Tag> {
        self.tag.as_ref().filter(|tag| !tag.is_default())
    }

    /// How it is on record: with the tag that is meant.
    pub fn full(self) -> Self {
        Self { tag: Some(self.tag.unwrap_or_default()), ..self }
    }

    /// Without the tag that its name means anyway.
    pub fn short(self) -> Self {
        Self { tag: self.tag.filter(|tag| !tag.is_default()), ..self }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tag {
            Some(tag) => write!(f, "{}:{tag}", self.name),
            None => self.name.fmt(f),
        }
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
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
fn how_to_build(reference: &str) -> String {
    match reference.parse::<Sought>() {
        Ok(Sought { reference: Reference { name, .. }, .. }) if STANDARD.contains(&name.as_str()) => {
            format!("; build it with `firkin template build {name}`")
        }
        Ok(_) | Err(_) => String::new(),
    }
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
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "3f2b1c4d-0000-4000-8000-000000000000";

    fn read(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn a_reference_is_taken_apart() {
        for (text, name, tag, full, short) in [
            ("base", "base", None, "base:default", "base"),
            ("Base:V1.0", "base", Some("v1.0"), "base:v1.0", "base:v1.0"),
            (" base: default ", "base", Some("default"), "base:default", "base"),
            ("default", "default", None, "default:default", "default"),
        ] {
            let found = read(text);
            assert_eq!((found.name.as_str(), found.tag.as_ref().map(Tag::as_str)), (name, tag), "{text}");
            assert_eq!((found.clone().full().to_string(), found.short().to_string()), (full.to_owned(), short.to_owned()));
        }
        assert_eq!((read("base:default").other_tag(), read("base:v1").other_tag().map(Tag::as_str)), (None, Some("v1")));
        for bad in [
            "other/base",
            "firkin/base",
            "",
            ":v1",
            "base:",
            "base:a:b",
            "a b",
            "firkin/",
            "firkin/a/b",
            "ä",
            "base:a/b",
            "base:ä",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_team_may_stand_before_what_is_looked_up_and_only_ones_own_before_what_is_given() {
        for (text, team, rest) in
            [("base", None, "base"), ("firkin/Base:V1", Some("firkin"), "base:v1"), (" b/x ", Some("b"), "x")]
        {
            let found: Sought = text.parse().unwrap();
            assert_eq!((found.team.as_ref().map(TeamId::as_str), found.reference), (team, read(rest)), "{text}");
        }
        for bad in ["", "/x", "b/", "b/c/x", "7/x", "b_/x", "b/x:", &format!("b/{}", "n".repeat(MAX_REFERENCE_BYTES))] {
            assert!(bad.parse::<Sought>().is_err(), "{bad}");
        }
        let team = Scope::Team("b".parse().unwrap());
        assert_eq!(Reference::given(&team, "b/x").unwrap(), read("x"));
        assert!(Reference::given(&team, "firkin/x").is_err() && Reference::given(&Scope::Host, "b/x").is_err());
    }

    #[test]
    fn what_is_given_has_no_tag_that_could_be_a_builds_id() {
        assert_eq!(Reference::given(&Scope::Host, "firkin/Base:V1").unwrap(), read("base:v1"));
        let refused = Reference::given(&Scope::Host, &format!("base:{UUID}")).unwrap_err();
        assert_eq!(refused, InvalidReference::Tag(UUID.to_owned()));
        // One that an earlier version let through is still found.
        assert_eq!(read(&format!("base:{UUID}")).tag(), UUID);
    }

    #[test]
    fn the_longest_name_is_read_and_no_longer_one() {
        let longest = format!("{}/{}:{}", "a".repeat(MAX_TEAM_BYTES), "n".repeat(MAX_NAME_BYTES), "t".repeat(MAX_TAG_BYTES));
        assert_eq!(longest.len(), MAX_REFERENCE_BYTES);
        assert!(longest.parse::<Sought>().is_ok());
        for longer in [format!("{longest}t"), "n".repeat(MAX_NAME_BYTES + 1), format!("n:{}", "t".repeat(MAX_TAG_BYTES + 1))] {
            assert!(longer.parse::<Sought>().is_err(), "{longer}");
        }
        let refused = " ".repeat(1 << 20).parse::<Reference>().unwrap_err();
        assert!(refused.to_string().len() < 2 * MAX_REFERENCE_BYTES, "an error repeats no more than could have been a name");
    }

    proptest! {
        #[test]
        fn a_reference_is_read_as_it_is_written(name in "[a-z0-9_-]{1,128}", tag in proptest::option::of("[a-z0-9._-]{1,128}")) {
            let written = Reference { name: name.parse().unwrap(), tag: tag.map(|tag| tag.parse().unwrap()) };
            prop_assert_eq!(&written.to_string().parse::<Reference>().unwrap(), &written);
            prop_assert_eq!(&format!(" {} ", written.to_string().to_uppercase()).parse::<Reference>().unwrap(), &written);
            let sought: Sought = format!("a-7/{written}").parse().unwrap();
            prop_assert_eq!((sought.team.unwrap().to_string(), &sought.reference), ("a-7".to_owned(), &written));
            let json = serde_json::to_string(&written).unwrap();
            prop_assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), written);
        }

        #[test]
        fn whatever_is_read_is_written_as_what_it_is(text in "[ -~]{0,300}|\\PC{0,40}|[a-z/]{0,12}:?[a-zA-Z.]{0,12}") {
            if let Ok(read) = text.parse::<Reference>() {
                let written = read.to_string();
                prop_assert!(written.len() <= MAX_REFERENCE_BYTES);
                prop_assert_eq!(written.parse::<Reference>(), Ok(read));
            }
        }
    }
}
