//! Names as columns of the database, where they are the texts that they are written as.

use super::database::{FromValue, ToValue, Value};
use crate::ground::{
    ids::{ArtifactId, BuildId, KeyId, TemplateId, WebhookId},
    reference::{Reference, TemplateName},
    team::TeamId,
};

/// What is a text in a column.
macro_rules! column {
    ($type:ty) => {
        impl ToValue for $type {
            fn to_value(&self) -> Value {
                Value::Text(self.to_string())
            }
        }

        impl FromValue for $type {
            fn from_value(value: &Value) -> Option<Self> {
                String::from_value(value).and_then(|text| text.parse().ok())
            }
        }
    };
}

column!(Reference);
column!(TemplateName);
column!(TemplateId);
column!(BuildId);
column!(TeamId);
column!(KeyId);
column!(ArtifactId);
column!(WebhookId);
