//! Names as columns of the database, where they are the texts that they are written as.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

use crate::ground::{
    ids::{ArtifactId, BuildId, KeyId, TemplateId},
    reference::{Reference, TemplateName},
    team::TeamId,
};

/// What is a text in a column.
macro_rules! column {
    ($type:ty) => {
        impl ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.to_string().into())
            }
        }

        impl FromSql for $type {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                value.as_str()?.parse().map_err(|error| FromSqlError::Other(Box::new(error)))
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
