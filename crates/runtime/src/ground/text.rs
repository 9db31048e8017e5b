//! Texts of one kind as a type of their own. Whether a text is of the kind is asked where it is read; on disk and on the wire it
//! stays the text that it is.

/// Makes a type of the texts for which `$valid` holds. Any other text is `$error`, made by `$refuse`.
macro_rules! text_type {
    ($(#[$doc:meta])* $vis:vis struct $name:ident where $valid:path, else $error:ty = $refuse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        $vis struct $name(String);

        impl $name {
            /// The text.
            $vis fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                if $valid(&text) { Ok(Self(text)) } else { Err(($refuse)(text)) }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                if $valid(text) { Ok(Self(text.to_owned())) } else { Err(($refuse)(text.to_owned())) }
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use text_type;
