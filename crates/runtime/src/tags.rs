//! Tags: the part of a template's name behind the colon. Several may name one template, each names one.
//!
//! A tag stands for what the template is when it is assigned. A rebuild replaces that, and takes its tags away but the one it is
//! built under: none of them silently comes to mean something else.

use crate::{error::TagError, runtime::TEAM, store::Store, template::valid_name};

/// The tag that a name without one means. It cannot be removed: the template would have no name.
pub(crate) const DEFAULT: &str = "default";

/// Tags in one request.
pub(crate) const MAX_TAGS: usize = 64;

/// Longest tag.
const MAX_TAG_BYTES: usize = 128;

/// What [`crate::runtime::Runtime::assign_tags`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// The tags, without the name.
    pub tags: Vec<String>,
    /// The build that they name now.
    pub build_id: String,
}

pub(crate) async fn assign(store: &Store, target: &str, tags: Vec<String>) -> Result<Tagged, TagError> {
    let base = base_name(target)?;
    let names = names(base, &tags)?;
    let found = store.template(target.to_owned()).await.map_err(TagError::Store)?;
    let template = found.ok_or_else(|| TagError::NotFound(target.to_owned()))?;
    // Named by its id, a template has to be called something first.
    if template.id == base {
        return Err(TagError::InvalidName(target.to_owned()));
    }
    store.add_names(template.id, names).await.map_err(TagError::Store)?;
    Ok(Tagged { tags, build_id: template.build_id })
}

pub(crate) async fn remove(store: &Store, name: &str, tags: &[String]) -> Result<(), TagError> {
    let base = base_name(name)?;
    if tags.iter().any(|tag| tag == DEFAULT) {
        return Err(TagError::Default);
    }
    let names = names(base, tags)?;
    let missing = store.remove_names(names).await.map_err(TagError::Store)?;
    match missing {
        None => Ok(()),
        Some(missing) => {
            let tag = missing.rsplit_once(':').map_or(missing.as_str(), |(_, tag)| tag);
            Err(TagError::NoSuchTag { tag: tag.to_owned(), name: base.to_owned() })
        }
    }
}

/// The name in `[team/]name[:tag]`.
fn base_name(reference: &str) -> Result<&str, TagError> {
    let bare = reference.strip_prefix(TEAM).and_then(|rest| rest.strip_prefix('/')).unwrap_or(reference);
    let base = bare.split_once(':').map_or(bare, |(base, _)| base);
    if valid_name(base) { Ok(base) } else { Err(TagError::InvalidName(reference.to_owned())) }
}

fn names(base: &str, tags: &[String]) -> Result<Vec<String>, TagError> {
    if tags.is_empty() || tags.len() > MAX_TAGS {
        return Err(TagError::Count { max: MAX_TAGS });
    }
    match tags.iter().find(|tag| !valid_tag(tag)) {
        Some(tag) => Err(TagError::InvalidTag(tag.clone())),
        None => Ok(tags.iter().map(|tag| format!("{base}:{tag}")).collect()),
    }
}

/// Lower-case letters, digits, `-`, `_` and `.`, and not the form of a build's id.
pub(crate) fn valid_tag(tag: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let is_uuid = tag.len() == 36 && tag.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    (1..=MAX_TAG_BYTES).contains(&tag.len()) && tag.bytes().all(allowed) && !is_uuid
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
        assert_eq!(base_name("firkin/base:v1").unwrap(), "base");
        assert!(base_name(":v1").is_err());
        assert!(base_name("other/base").is_err());
    }
}
