//! Where it is recorded what there is, as it was named.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use firkin_postgres::Address;

use crate::{
    args::catalog::CatalogArgs,
    failure::Advise as _,
    secretfile::{self, Credentials, SecretFile},
};

/// A catalogue that is not part of the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CatalogSettings {
    url: String,
    password: Option<SecretFile>,
    authority: Option<PathBuf>,
}

impl CatalogSettings {
    /// What was named, if anything was.
    pub(crate) fn resolve(args: &CatalogArgs, credentials: &Credentials, absolute: impl Fn(&Path) -> PathBuf) -> Option<Self> {
        let files = (args.catalog_password_file.as_deref(), args.catalog_authority.as_deref());
        Some(Self::at(args.catalog.clone()?, files, credentials, absolute))
    }

    /// That at `url`, with these files for its password and its authority.
    pub(crate) fn at(
        url: String,
        (password, authority): (Option<&Path>, Option<&Path>),
        credentials: &Credentials,
        absolute: impl Fn(&Path) -> PathBuf,
    ) -> Self {
        let named = password.map(|path| credentials.file(path));
        Self {
            url,
            password: named.or_else(|| credentials.named(secretfile::CATALOG_PASSWORD)),
            authority: authority.map(absolute),
        }
    }

    /// The file with the password, if there is one.
    pub(crate) fn password(&self) -> Option<&SecretFile> {
        self.password.as_ref()
    }

    /// The options that name it, for hints to paste.
    pub(crate) fn options(&self) -> String {
        let mut options = format!(" --catalog {}", self.url);
        if let Some(password) = &self.password {
            options += &format!(" --catalog-password-file {}", password.path.display());
        }
        if let Some(authority) = &self.authority {
            options += &format!(" --catalog-authority {}", authority.display());
        }
        options
    }

    /// Where it is. Nothing is asked of it yet.
    pub(crate) fn address(&self) -> anyhow::Result<Address> {
        let address = Address::with_authority(&self.url, self.authority.as_deref()).context("`--catalog` names no catalogue")?;
        if address.has_password() {
            return Err(anyhow::anyhow!("the address of the catalogue has a password in it, which other processes can see"))
                .hint("leave it out, and name a file that has it with `--catalog-password-file`");
        }
        Ok(address)
    }
}
