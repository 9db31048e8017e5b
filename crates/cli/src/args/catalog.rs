//! What may be typed of where it is recorded what there is.

use std::path::PathBuf;

use clap::{Args, builder::NonEmptyStringValueParser};

/// Options of the commands that read or change what is on record.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CatalogArgs {
    /// Record what there is in this PostgreSQL, as in `postgres://USER@HOST:PORT/DATABASE`, and not in the state directory
    #[arg(long, value_name = "URL", env = "FIRKIN_CATALOG", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) catalog: Option<String>,
    /// Password of that database's user, in a file that is nobody else's [default: systemd's credential `catalog-password`]
    #[arg(long, value_name = "FILE", env = "FIRKIN_CATALOG_PASSWORD_FILE", hide_env_values = true)]
    pub(crate) catalog_password_file: Option<PathBuf>,
    /// Authority by which that database proves its name, PEM [default: those that this host trusts]
    #[arg(long, value_name = "FILE", env = "FIRKIN_CATALOG_AUTHORITY", hide_env_values = true)]
    pub(crate) catalog_authority: Option<PathBuf>,
}
