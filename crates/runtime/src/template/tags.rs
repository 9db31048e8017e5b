//! Tags: the part of a template's name behind the colon. Several may stand for one build, each stands for one.
//!
//! A tag stands for a build until it is removed, assigned to another, or built anew; a build under other tags changes nothing of it.

use crate::{
    ground::{
        random::is_uuid,
        reference::{DEFAULT, NoTemplate, Reference},
    },
    store::{Store, StoreError},
};

/// Tags in one request.
pub(crate) const MAX_TAGS: usize = 64;

/// Longest tag.
const MAX_TAG_BYTES: usize = 128;

/// The result of [`crate::runtime::Runtime::assign_tags`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// The tags, without the name.
    pub tags: Vec<String>,
    /// The build that they name now.
    pub build_id: String,
}

/// Why tags were not assigned or removed.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// Nothing has this id or name, or not this tag.
    #[error(transparent)]
    NoTemplate(#[from] NoTemplate),
    /// A template to take tags from is named without one.
    #[error("`{0}` has a tag: name those to be removed in `tags`")]
    Tagged(String),
    /// Not `name` or `name:tag`.
    #[error("`{0}` is not the name of a template")]
    InvalidName(String),
    /// Not a tag.
    #[error("`{0}` is not a tag: it must be lower-case letters, digits, `-`, `_` and `.`, and not a build's id")]
    InvalidTag(String),
    /// Too many tags at once, or none.
    #[error("cannot change tags: name 1 to {max} of them")]
    Count {
        /// The most.
        max: usize,
    },
    /// The tag that stands for a name without one.
    #[error("cannot remove tag `default`")]
    Default,
    /// The name has no such tag.
    #[error("tag `{tag}` of template `{name}` does not exist")]
    NoSuchTag {
        /// The tag.
        tag: String,
        /// The name.
        name: String,
    },
    /// The database failed.
    #[error("cannot change tags")]
    Store(#[source] StoreError),
}

pub(crate) async fn assign(store: &Store, target: &str, tags: Vec<String>) -> Result<Tagged, TagError> {
    let reference = valid(target)?;
    let tags = clean(&tags)?;
    let found = store.template(target).await.map_err(TagError::Store)?;
    let version = NoTemplate::unless_found(target, found)?;
    // A snapshot that was given no name has to be called something first.
    let base = match version.base_name() {
        Some(name) => name.to_owned(),
        None if version.snapshot_of.is_none() => version.id.clone(),
        None => return Err(TagError::InvalidName(target.to_owned())),
    };
    let names = tags.iter().map(|tag| format!("{base}:{tag}")).collect();
    if !store.add_names(version.build_id.clone(), names).await.map_err(TagError::Store)? {
        // It was deleted meanwhile.
        return Err(NoTemplate::Absent(reference.base).into());
    }
    Ok(Tagged { tags, build_id: version.build_id })
}

pub(crate) async fn remove(store: &Store, name: &str, tags: &[String]) -> Result<(), TagError> {
    let reference = valid(name)?;
    if reference.other_tag().is_some() {
        return Err(TagError::Tagged(name.to_owned()));
    }
    let tags = clean(tags)?;
    if tags.iter().any(|tag| tag == DEFAULT) {
        return Err(TagError::Default);
    }
    let family = store.family(&reference.base).await.map_err(TagError::Store)?;
    // Snapshots of one name are found by that, not by a template's.
    let base = family.map_or_else(|| reference.base.clone(), |family| family.name.unwrap_or(reference.base.clone()));
    let names = tags.iter().map(|tag| format!("{base}:{tag}")).collect();
    match store.remove_names(names).await.map_err(TagError::Store)? {
        None => Ok(()),
        Some(missing) => {
            let tag = missing.rsplit_once(':').map_or(missing.as_str(), |(_, tag)| tag);
            Err(TagError::NoSuchTag { tag: tag.to_owned(), name: reference.base })
        }
    }
}

/// Reads a text that may name a template.
fn valid(text: &str) -> Result<Reference, TagError> {
    let reference = Reference::parse(text);
    if reference.is_valid() { Ok(reference) } else { Err(TagError::InvalidName(text.to_owned())) }
}

/// Tags as they are kept, each once.
fn clean(tags: &[String]) -> Result<Vec<String>, TagError> {
    if tags.is_empty() || tags.len() > MAX_TAGS {
        return Err(TagError::Count { max: MAX_TAGS });
    }
    let mut cleaned = Vec::new();
    for tag in tags {
        let tag = tag.trim().to_lowercase();
        if !valid_tag(&tag) {
            return Err(TagError::InvalidTag(tag));
        }
        if !cleaned.contains(&tag) {
            cleaned.push(tag);
        }
    }
    Ok(cleaned)
}

/// Lower-case letters, digits, `-`, `_` and `.`, and not the form of a build's id.
pub(crate) fn valid_tag(tag: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=MAX_TAG_BYTES).contains(&tag.len()) && tag.bytes().all(allowed) && !is_uuid(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_names_are_told_from_nonsense() {
        for (tag, good) in [
            ("v1.2_3-x", true),
            ("", false),
            (":v1", false),
            ("name:", false),
            ("V1", false),
            ("a/b", false),
            ("3f2b1c4d-0000-4000-8000-000000000000", false),
        ] {
            assert_eq!(valid_tag(tag), good, "{tag:?}");
        }
        assert_eq!(valid("firkin/base:v1").unwrap().base, "base");
        assert!(valid(":v1").is_err());
        assert!(valid("other/base").is_err());
        assert_eq!(clean(&["V1".to_owned(), " v1 ".to_owned()]).unwrap(), ["v1"]);
    }
}
