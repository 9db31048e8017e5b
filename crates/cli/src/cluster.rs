//! The cluster that was named, and this server as a node of it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use fs_err as fs;

use crate::{
    args::node::{ClusterAccessArgs, Durable, NodeArgs},
    catalog::CatalogSettings,
    failure::{Advise as _, ExitStatus},
    secretfile::{self, Credentials, SecretFile},
};

/// Where other nodes come in, unless the user says otherwise.
const DEFAULT_PEER_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3001);

/// Longest name of a node.
const MAX_NAME: usize = 63;

/// A cluster, for whoever has its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) catalog: CatalogSettings,
    secret: Option<SecretFile>,
}

/// This server as a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeSettings {
    pub(crate) access: Access,
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) address: String,
    pub(crate) durable: Durable,
}

impl Access {
    /// What was named, if anything was.
    pub(crate) fn resolve(
        args: &ClusterAccessArgs,
        credentials: &Credentials,
        absolute: impl Fn(&Path) -> PathBuf,
    ) -> Option<Self> {
        let url = args.cluster.clone()?;
        let files = (args.catalog_password_file.as_deref(), args.catalog_authority.as_deref());
        let secret = args.cluster_secret_file.as_deref().map(|path| credentials.file(path));
        Some(Self {
            catalog: CatalogSettings::at(url, files, credentials, absolute),
            secret: secret.or_else(|| credentials.named(secretfile::CLUSTER_SECRET)),
        })
    }

    /// The file with the secret.
    pub(crate) fn secret_file(&self) -> anyhow::Result<&SecretFile> {
        self.secret
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("the cluster's secret was not named"))
            .hint("`--cluster-secret-file FILE` names it; `firkin cluster found` makes one, which each node gets a copy of")
            .status(ExitStatus::Usage)
    }
}

impl NodeSettings {
    /// What was named, if anything was.
    pub(crate) fn resolve(
        args: &NodeArgs,
        access: ClusterAccessArgs,
        credentials: &Credentials,
        absolute: impl Fn(&Path) -> PathBuf,
    ) -> Option<Self> {
        let access = Access::resolve(&access, credentials, absolute)?;
        let listen = args.peer_listen.unwrap_or(DEFAULT_PEER_LISTEN);
        let address = args.peer_address.clone().unwrap_or_else(|| listen.to_string());
        let durable = args.durable.unwrap_or_default();
        Some(Self { access, name: args.node_name.clone().unwrap_or_else(host_name), listen, address, durable })
    }

    /// Whether it would be on record at an address that is no host's, or at no port.
    pub(crate) fn is_nowhere(&self) -> bool {
        self.address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified() || address.port() == 0)
    }

    /// The options that say so, for hints to paste.
    pub(crate) fn options(&self) -> String {
        let catalog = self.access.catalog.options().replacen("--catalog ", "--cluster ", 1);
        let secret = self.access.secret.as_ref().map(|file| format!(" --cluster-secret-file {}", file.path.display()));
        let Self { name, listen, address, durable, .. } = self;
        let durable = if *durable == Durable::Cluster { " --durable cluster" } else { "" };
        let address = if *address == listen.to_string() { String::new() } else { format!(" --peer-address {address}") };
        format!("{catalog}{} --node-name {name} --peer-listen {listen}{address}{durable}", secret.unwrap_or_default())
    }
}

/// The host's name, as far as it may stand in a header.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).take(MAX_NAME).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}
