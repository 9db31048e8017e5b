//! Where copies go, off the host: the options of `firkin up` and `firkin restore-from`, and the store that they become.
//!
//! Who may reach it is said by the environment, or by a file: never by an option, which others see in the list of processes.

use std::{num::NonZeroU64, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Args, value_parser};
use firkin_cluster::{KEPT_AT_LEAST, Store};
use firkin_copies::{Access, Copies, Destination, Limits};
use firkin_runtime::config::{CopyConfig, KEEP_COPIES};

use crate::{
    failure::{Advise as _, advised},
    secretfile::{Credentials, SecretFile},
};

/// A day.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How often one request to a cluster's store is repeated.
const SHARED_REPEATS: usize = 3;

/// The longest wait before one is.
const SHARED_LONGEST_WAIT: Duration = Duration::from_secs(3);

/// How often what a cluster's store need not have any more is looked for.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);

/// Where copies go.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Copies off the host")]
pub(crate) struct CopiesArgs {
    /// Copy paused sandboxes, snapshots, templates and the catalogue there once they are durable, s3://BUCKET/PREFIX or file:///DIRECTORY; with
    /// --cluster, the same place for all nodes, which fetch from it too, and without the catalogue [default: nothing is copied]
    #[arg(long, value_name = "URL", env = "FIRKIN_COPY_TO", hide_env_values = true)]
    copy_to: Option<Destination>,
    /// Keep copies for so many days after what they are of has gone [default: 7]
    #[arg(long, value_name = "DAYS", env = "FIRKIN_COPY_KEEP", hide_env_values = true, value_parser = value_parser!(u16).range(..=3650))]
    copy_keep: Option<u16>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// How a store of copies is reached.
#[derive(Debug, Default, Args)]
pub(crate) struct StoreArgs {
    /// Lines `AWS_NAME=value` by which the store is reached, in a file that is nobody else's [default: such variables of the environment]
    #[arg(long, value_name = "FILE", env = "FIRKIN_COPY_CREDENTIALS", hide_env_values = true)]
    copy_credentials: Option<PathBuf>,
    /// Send and fetch at most so many MiB a second [default: all that the network gives]
    #[arg(long, value_name = "MIB", env = "FIRKIN_COPY_RATE", hide_env_values = true, value_parser = value_parser!(u32).range(1..=100_000))]
    copy_rate: Option<u32>,
}

/// `firkin restore-from`
#[derive(Debug, Args)]
pub(crate) struct RestoreFromArgs {
    /// Where the copies are, as `firkin up --copy-to` had it
    #[arg(value_name = "URL")]
    pub(crate) from: Destination,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// A store of copies, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreSettings {
    /// Where.
    pub(crate) destination: Destination,
    credentials: Option<SecretFile>,
    mib_per_second: Option<u32>,
}

/// Copies, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopySettings {
    pub(crate) store: StoreSettings,
    keep: Duration,
}

impl StoreSettings {
    fn resolve(destination: &Destination, args: &StoreArgs, credentials: &Credentials) -> Self {
        Self {
            destination: destination.clone(),
            credentials: args.copy_credentials.as_ref().map(|path| credentials.file(path)),
            mib_per_second: args.copy_rate,
        }
    }

    /// Of `firkin restore-from`.
    pub(crate) fn of_restore(args: &RestoreFromArgs, credentials: &Credentials) -> Self {
        Self::resolve(&args.from, &args.store, credentials)
    }

    /// The store. Whether it is there shows when it is used.
    pub(crate) fn open(&self) -> anyhow::Result<Copies> {
        self.open_with(Limits::default())
    }

    fn open_with(&self, limits: Limits) -> anyhow::Result<Copies> {
        let environment = Access::of(std::env::vars_os().filter_map(|(name, value)| {
            // What is no text is none of these.
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }));
        let access = match &self.credentials {
            Some(file) => {
                let text = file.read().map_err(|error| {
                    let hint = error.hint();
                    advised(error, hint, None)
                })?;
                let said = Access::parse(&text);
                environment.overridden_by(said.with_context(|| format!("cannot use `{}`", file.path.display()))?)
            }
            None => environment,
        };
        let bytes_per_second = self.mib_per_second.and_then(|mib| NonZeroU64::new(u64::from(mib) << 20));
        let opened = Copies::open(&self.destination, &access, &Limits { bytes_per_second, ..limits });
        opened
            .with_context(|| format!("cannot use `{}`", self.destination))
            .hint("`AWS_REGION` and `AWS_ENDPOINT_URL` say which S3")
    }
}

impl CopySettings {
    /// Decides every value.
    pub(crate) fn resolve(args: &CopiesArgs, credentials: &Credentials) -> Option<Self> {
        let destination = args.copy_to.as_ref()?;
        let keep = args.copy_keep.map_or(KEEP_COPIES, |days| DAY * u32::from(days));
        Some(Self { store: StoreSettings::resolve(destination, &args.store, credentials), keep })
    }

    /// What the runtime is told of them.
    pub(crate) fn open(&self) -> anyhow::Result<CopyConfig> {
        Ok(CopyConfig { keep: self.keep, ..CopyConfig::new(self.store.open()?) })
    }

    /// What a node of a cluster has of them: the store that all nodes have.
    pub(crate) fn open_shared(&self) -> anyhow::Result<Arc<Store>> {
        // Nodes keep copies while it is away, so it is not waited for.
        let limits = Limits { repeats: SHARED_REPEATS, longest_wait: SHARED_LONGEST_WAIT, ..Limits::default() };
        Ok(Store::of(self.store.open_with(limits)?, self.keep.max(KEPT_AT_LEAST), CLEAN_EVERY))
    }

    /// The options that give the same again. Defaults are left out.
    pub(crate) fn options(&self) -> String {
        let mut options = format!(" --copy-to {}", self.store.destination);
        if self.keep != KEEP_COPIES {
            options += &format!(" --copy-keep {}", self.keep.as_secs() / DAY.as_secs());
        }
        if let Some(file) = &self.store.credentials {
            options += &format!(" --copy-credentials {}", file.path.display());
        }
        if let Some(mib) = self.store.mib_per_second {
            options += &format!(" --copy-rate {mib}");
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        copies: CopiesArgs,
    }

    fn parsed(options: &str) -> Result<Option<CopySettings>, clap::Error> {
        let line = Line::try_parse_from(format!("up{options}").split(' '))?;
        Ok(CopySettings::resolve(&line.copies, &Credentials::default()))
    }

    #[test]
    fn what_is_said_is_meant_and_said_again() {
        assert_eq!(parsed("").unwrap(), None);
        assert_eq!(parsed(" --copy-rate 5").unwrap(), None, "to nowhere");
        for all in [
            " --copy-to s3://bucket/hosts/one",
            " --copy-to file:///srv/copies --copy-keep 30 --copy-credentials /etc/firkin/s3 --copy-rate 20",
            " --copy-to s3://bucket --copy-keep 0",
        ] {
            assert_eq!(parsed(all).unwrap().unwrap().options(), all);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_not_repeated() {
        for option in ["copy-rate 0", "copy-keep 4000", "copy-keep -1", "copy-to bucket", "copy-to s3://"] {
            assert!(parsed(&format!(" --{option}")).is_err(), "{option}");
        }
        assert!(parsed(" --copy-to s3://key:hush@bucket").is_err());
    }
}
