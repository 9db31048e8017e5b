//! `firkin node ...` and `firkin cluster found`: a cluster as its catalogue has it, for whoever has its secret. No server is asked.

use anyhow::Context as _;
use firkin_cluster::{ClusterSecret, node_id, rotate};
use firkin_postgres::{Address, Founder, Founding, LeaseTimes, Members, NodeId, NodeRecord, NodeState, init};
use firkin_runtime::store::catalog as store_catalog;
use serde::Serialize;

use super::{
    catalog, draining,
    node_shown::{Shown, details, list},
};
use crate::{
    args::{
        cluster::RotateSecretArgs,
        node::{ClusterAccessArgs, FoundArgs, NodeCommand, NodeForgetArgs, NodeNamedArgs},
    },
    cluster::Access,
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    secretfile::Credentials,
    serverfile,
    settings::Settings,
};

/// What was made.
#[derive(Debug, Serialize)]
struct Founded {
    cluster: String,
    secret_file: String,
    secret_is_new: bool,
}

impl Founded {
    fn table(&self) -> Table {
        let mut table = Table::new(&["cluster", "secret"]);
        table.row([self.cluster.clone(), self.secret_file.clone()]);
        table
    }
}

/// The cluster that was named.
pub(super) fn access(args: &ClusterAccessArgs) -> anyhow::Result<Access> {
    let named = Access::resolve(args, &Credentials::of_process(), |path| path.to_owned());
    named
        .ok_or_else(|| anyhow::anyhow!("no cluster was named"))
        .hint("`--cluster postgres://USER@HOST:PORT/DATABASE` names its catalogue")
        .status(ExitStatus::Usage)
}

/// The secret of a cluster.
pub(super) fn secret(access: &Access) -> anyhow::Result<ClusterSecret> {
    let file = access.secret_file()?;
    let secret = ClusterSecret::parse(serverfile::read_secret(file)?.as_bytes(), &file.path);
    secret.hint("it is the file that `firkin cluster found` made: copy it as it is")
}

/// The cluster that was named, for whoever has its secret.
pub(super) async fn members(args: &ClusterAccessArgs) -> anyhow::Result<Members> {
    let access = access(args)?;
    let secret = secret(&access)?;
    enter(catalog::address(&access.catalog)?, &secret).await
}

/// The cluster at an address, which is one of this secret.
pub(super) async fn enter(address: Address, secret: &ClusterSecret) -> anyhow::Result<Members> {
    // It is large, and asked once.
    Box::pin(Members::at(address, &secret.fingerprint())).await.map_err(catalog::advising)
}

/// Runs a `firkin node` command.
pub(crate) async fn run(settings: &Settings, command: NodeCommand) -> anyhow::Result<ExitStatus> {
    match command {
        NodeCommand::Ls(args) => {
            let found = members(&args.access).await?.nodes().await.map_err(catalog::advising)?;
            let shown: Vec<Shown> = found.iter().map(Shown::of).collect();
            output::result(settings.format, &shown, || list(&shown))?;
            Ok(ExitStatus::Success)
        }
        NodeCommand::Info(args) => {
            let found = members(&args.access).await?.nodes().await.map_err(catalog::advising)?;
            let shown = Shown::of(named(&found, &args.node)?);
            output::result(settings.format, &shown, || details(&shown))?;
            Ok(ExitStatus::Success)
        }
        NodeCommand::Cordon(args) => {
            let (members, _) = set_state(&args, NodeState::Cordoned).await?;
            // By then each node has heard of it.
            tokio::time::sleep(members.cluster().times.renew_every).await;
            output::note(&format!("node `{}` takes nothing new", args.node));
            Ok(ExitStatus::Success)
        }
        NodeCommand::Uncordon(args) => {
            set_state(&args, NodeState::Ready).await?;
            output::note(&format!("node `{}` takes new sandboxes", args.node));
            Ok(ExitStatus::Success)
        }
        NodeCommand::Drain(args) => draining::drain(settings, &args, set_state(&args.named, NodeState::Draining)).await,
        NodeCommand::Forget(args) => forget(args).await,
    }
}

/// Has a node be in another state. Gives the cluster, and the node's id.
async fn set_state(args: &NodeNamedArgs, state: NodeState) -> anyhow::Result<(Members, NodeId)> {
    let members = members(&args.access).await?;
    let found = members.nodes().await.map_err(catalog::advising)?;
    let node = named(&found, &args.node)?.id.clone();
    if !members.set_state(&node, state, &args.reason).await.map_err(catalog::advising)? {
        return Err(anyhow::anyhow!("node `{}` is forgotten, and stays so until its server starts again", args.node));
    }
    Ok((members, node))
}

/// The node that is meant.
fn named<'a>(found: &'a [NodeRecord], name: &str) -> anyhow::Result<&'a NodeRecord> {
    let named: Vec<&NodeRecord> = found.iter().filter(|node| node.name == name || node.id.as_str() == name).collect();
    match named[..] {
        [node] => Ok(node),
        [] => Err(anyhow::anyhow!("there is no node `{name}`")).hint("`firkin node ls` lists them"),
        _ => Err(anyhow::anyhow!("several nodes are called `{name}`")).hint("name it by its id, as in `firkin node ls --json`"),
    }
}

async fn forget(args: NodeForgetArgs) -> anyhow::Result<ExitStatus> {
    let members = members(&args.access).await?;
    let found = members.nodes().await.map_err(catalog::advising)?;
    let node = named(&found, &args.node)?;
    if !args.it_is_off {
        let error = anyhow::anyhow!("node `{}` is not forgotten: nobody has said that its host is off", node.name);
        return Err(error)
            .hint("switch its host off, or see that it is, and say `--it-is-off`: where it still runs, one sandbox may run twice")
            .status(ExitStatus::Usage);
    }
    members.forget(&node.id, &args.reason).await.map_err(catalog::advising)?;
    output::note(&format!("node `{}` is forgotten: what it had paused can be had elsewhere", node.name));
    Ok(ExitStatus::Success)
}

/// `firkin cluster rotate-secret`
pub(super) async fn rotate_secret(settings: &Settings, args: &RotateSecretArgs) -> anyhow::Result<ExitStatus> {
    let access = access(&args.access)?;
    let former = secret(&access)?;
    let members = enter(catalog::address(&access.catalog)?, &former).await?;
    let path = &args.new_secret_file;
    let is_new = !path.try_exists().with_context(|| format!("cannot look for `{}`", path.display()))?;
    let next = if is_new { ClusterSecret::create(path)? } else { ClusterSecret::read(path)? };
    if next.fingerprint() == members.cluster().secret_fingerprint {
        return Err(anyhow::anyhow!("`{}` is the secret that the cluster has", path.display()))
            .hint("name a file that is not there yet: the next secret is made in it");
    }
    let Some(closed) = Box::pin(rotate(&members, (&former, &next))).await.map_err(catalog::advising)? else {
        let nodes = members.nodes().await.map_err(catalog::advising)?;
        let alive = nodes.iter().filter(|node| node.is_alive());
        let alive: Vec<_> = alive.map(|node| format!("`{}` for {} s", node.name, node.lease_left.as_secs())).collect();
        if alive.is_empty() {
            return Err(anyhow::anyhow!("the secret was changed meanwhile"))
                .hint("`firkin cluster status` with the new one says whether it was this");
        }
        return Err(anyhow::anyhow!("the secret is what it was: nodes hold their leases, {}", alive.join(", ")))
            .hint("stop their servers with `--on-exit leave`, wait until the leases are over, and try again: nodes of two secrets refuse each other");
    };
    let rotated =
        Founded { cluster: members.cluster().id.clone(), secret_file: path.display().to_string(), secret_is_new: is_new };
    output::result(settings.format, &rotated, || rotated.table())?;
    for what in closed {
        output::note(&format!("{what} could not be opened with the former secret, and still cannot"));
    }
    output::note("give each node a copy of it, and start them with that; the one before opens nothing any more");
    Ok(ExitStatus::Success)
}

/// `firkin cluster found`
pub(crate) async fn found(settings: &Settings, args: &FoundArgs) -> anyhow::Result<ExitStatus> {
    let access = access(&args.access)?;
    let path = access.secret_file()?.path.clone();
    let is_new = !path.try_exists().with_context(|| format!("cannot look for `{}`", path.display()))?;
    let secret = if is_new { ClusterSecret::create(&path)? } else { secret(&access)? };
    let address = catalog::address(&access.catalog)?;
    // Whose catalogue it was alone has it with all that is on record.
    let founder = match store_catalog::elsewhere(&settings.state_dir)? {
        Some(_) => Some(Founder {
            node: node_id(&settings.state_dir).context("cannot keep the id of this node")?,
            holder: store_catalog::holder(&settings.state_dir, address.to_string())?,
        }),
        None => None,
    };
    let founding = Founding { secret_fingerprint: secret.fingerprint(), times: LeaseTimes::default(), founder };
    let made = init(&address, &founding).await.map_err(catalog::advising)?;
    let founded = Founded { cluster: made.id, secret_file: path.display().to_string(), secret_is_new: is_new };
    output::result(settings.format, &founded, || founded.table())?;
    output::note("give each node a copy of the secret, and start it with `firkin up --cluster URL --cluster-secret-file FILE`");
    Ok(ExitStatus::Success)
}
