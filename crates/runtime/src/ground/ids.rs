//! Ids, each kind a type of its own: what one leads to cannot be looked for by another. On disk and on the wire they are texts.
//!
//! Ids are parts of paths, so none is read that could lead out of the directory that it is looked for in.

use super::{
    random::{alphanumeric, uuid},
    reference::{TemplateName, is_name},
    text::text_type,
};

/// The longest id of anything.
const MAX_ID_BYTES: usize = 64;

/// Characters of a new one, which nobody guesses.
const LENGTH: usize = 20;

/// Characters of a new key's id, which need not be secret.
const KEY_LENGTH: usize = 12;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the id of {what}: it must be 1 to {MAX_ID_BYTES} letters, digits, `-` and `_`")]
pub struct InvalidId {
    /// What it was to be the id of.
    what: &'static str,
    /// As much of it as an id can have.
    text: String,
}

impl InvalidId {
    fn of(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(MAX_ID_BYTES).collect() }
    }
}

fn is_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

/// Makes a type of ids, which says how a new one is made.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $valid:path, $new:expr) => {
        text_type! {
            $(#[$doc])*
            pub struct $name where $valid, else InvalidId = |text: String| InvalidId::of($what, &text)
        }

        impl $name {
            /// A new one.
            pub(crate) fn generate() -> Self {
                Self($new)
            }
        }
    };
}

id! {
    /// One layer of a root disk, or an overlay that may become one.
    LayerId, "a layer", is_id, alphanumeric(LENGTH)
}

id! {
    /// A snapshot artifact; also the name of its directory.
    ArtifactId, "an artifact", is_id, alphanumeric(LENGTH)
}

id! {
    /// A template or a snapshot, whatever it is called. It is looked up where names are, and has their form.
    TemplateId, "a template", is_name, alphanumeric(LENGTH)
}

id! {
    /// One build of a template, and the version that it made; a snapshot has one too.
    BuildId, "a build", is_id, uuid()
}

id! {
    /// An API key: the name that it is spoken of by, which opens nothing.
    KeyId, "a key", is_id, format!("key_{}", alphanumeric(KEY_LENGTH))
}

id! {
    /// A webhook.
    WebhookId, "a webhook", is_id, uuid()
}

impl LayerId {
    /// The name that the layer has among the members of an artifact.
    pub(crate) fn member(&self) -> String {
        format!("layer:{self}")
    }
}

/// What has no name is called by its id.
impl From<&TemplateId> for TemplateName {
    fn from(id: &TemplateId) -> Self {
        id.as_str().parse().expect("an id has the form of a name")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_is_read_as_it_is_written_and_stays_in_its_directory(text in "[a-zA-Z0-9_-]{1,64}", hostile in "\\PC{0,70}") {
            let id: LayerId = text.parse().unwrap();
            prop_assert_eq!((id.to_string(), serde_json::to_string(&id).unwrap()), (text.clone(), format!("\"{text}\"")));
            prop_assert_eq!(id.to_string().parse::<LayerId>(), Ok(id));
            if let Ok(id) = hostile.parse::<LayerId>() {
                let path = std::path::Path::new("/layers").join(id.as_str());
                prop_assert_eq!((path.parent(), path.file_name()), (Some("/layers".as_ref()), Some(id.as_str().as_ref())));
            }
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_id() {
        for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", ".hidden", "a.qcow2", "a b", "ä", &"x".repeat(65)] {
            let refused = bad.parse::<LayerId>().unwrap_err();
            assert!(refused.to_string().contains("is not the id of a layer"), "{bad}");
        }
    }
}
