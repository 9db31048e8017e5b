//! Tags: the part of a template's name behind the colon. Several may stand for one build, each stands for one.
//!
//! A tag stands for a build until it is removed, assigned to another, or built anew; a build under other tags changes nothing of it.

use crate::{
    ground::{
        reference::{InvalidReference, NoTemplate, Reference, Sought, Tag, TemplateName},
        team::{Scope, TeamId},
    },
    store::{Store, StoreError},
};

/// Tags in one request.
pub(crate) const MAX_TAGS: usize = 64;

/// The result of [`crate::runtime::Runtime::assign_tags`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// The tags, without the name.
    pub tags: Vec<String>,
    /// The build that they name now.
    pub build_id: String,
    /// Its template.
    pub template_id: String,
    /// Whose that is.
    pub owner: TeamId,
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
    /// Not the form of a name, or of a tag.
    #[error(transparent)]
    Malformed(#[from] InvalidReference),
    /// A snapshot without a name has none to be tagged.
    #[error("`{0}` is not the name of a template")]
    Nameless(String),
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

pub(crate) async fn assign(store: &Store, scope: &Scope, target: &str, tags: Vec<String>) -> Result<Tagged, TagError> {
    let sought: Sought = target.parse()?;
    let tags = given(&tags)?;
    let found = store.template(scope.clone(), sought).await.map_err(TagError::Store)?;
    let version = NoTemplate::unless_found(target, found)?;
    // A snapshot that was given no name has to be called something first.
    let name = match version.base_name() {
        Some(name) => name.clone(),
        None if version.snapshot_of.is_none() => TemplateName::from(&version.id),
        None => return Err(TagError::Nameless(target.to_owned())),
    };
    if !store.add_names(version.build_id.clone(), full(&name, &tags)).await.map_err(TagError::Store)? {
        // It was deleted meanwhile.
        return Err(NoTemplate::Absent(target.to_owned()).into());
    }
    Ok(Tagged {
        tags: tags.into_iter().map(String::from).collect(),
        build_id: version.build_id.into(),
        template_id: version.id.into(),
        owner: version.owner,
    })
}

/// Gives whose they were, and of what.
pub(crate) async fn remove(store: &Store, scope: &Scope, target: &str, tags: &[String]) -> Result<(TeamId, String), TagError> {
    let Sought { team, reference } = target.parse()?;
    if reference.other_tag().is_some() {
        return Err(TagError::Tagged(target.to_owned()));
    }
    let tags = given(tags)?;
    if tags.iter().any(Tag::is_default) {
        return Err(TagError::Default);
    }
    let asked = reference.name;
    let sought = Sought { team: team.clone(), reference: Reference { name: asked.clone(), tag: None } };
    let family = store.family(scope.clone(), sought).await.map_err(TagError::Store)?;
    let owner = team.filter(|team| scope.sees(team)).unwrap_or_else(|| scope.owner());
    // Snapshots of one name are found by that, not by a template's.
    let (owner, name, id) = match family {
        Some(family) => (family.owner, family.name.unwrap_or_else(|| asked.clone()), family.id.into()),
        None => (owner, asked.clone(), asked.to_string()),
    };
    match store.remove_names(owner.clone(), full(&name, &tags)).await.map_err(TagError::Store)? {
        None => Ok((owner, id)),
        Some(missing) => Err(TagError::NoSuchTag { tag: missing.tag().to_owned(), name: asked.into() }),
    }
}

/// The names that these tags are part of.
fn full(name: &TemplateName, tags: &[Tag]) -> Vec<Reference> {
    tags.iter().map(|tag| Reference { name: name.clone(), tag: Some(tag.clone()) }).collect()
}

fn given(tags: &[String]) -> Result<Vec<Tag>, TagError> {
    if tags.is_empty() || tags.len() > MAX_TAGS {
        return Err(TagError::Count { max: MAX_TAGS });
    }
    Ok(Tag::all_given(tags.iter().map(String::as_str))?)
}
