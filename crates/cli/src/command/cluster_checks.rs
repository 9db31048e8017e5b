//! What `firkin doctor --cluster` looks at: the database, the secret, the tables, this host's clock, the times of leases, and the peer port of each
//! node, as far as this host reaches it.

use firkin_cluster::{
    ClusterSecret,
    clock::{self, BEARABLE, NOTICEABLE},
    knock,
};
use firkin_postgres::{AWAY, ClockOffset, Health, LeaseTimes, Members, NodeRecord, OpenError};
use futures::{StreamExt as _, stream};

use super::{catalog, node, node_shown::ago};
use crate::{
    args::node::ClusterAccessArgs,
    cluster::Access,
    host::{Check, Status},
};

/// Peer ports that are tried at a time.
const AT_ONCE: usize = 16;

/// Renewals that may fail one after the other before a lease is over: fewer, and a short outage of the database does it.
const LEAST_TRIES: u32 = 3;

/// The oldest PostgreSQL that has all that is asked of it.
const OLDEST: u32 = 14;

const DATABASE: (&str, &str) = ("cluster database", "it decides what is whose");
const SECRET: (&str, &str) = ("cluster secret", "whoever has it is a node, and nobody else");
const TABLES: (&str, &str) = ("cluster tables", "all nodes have the same");
const CLOCK: (&str, &str) = ("clock", "nodes refuse certificates of the future, and a deadline is a time of day");
const LEASES: (&str, &str) = ("lease times", "a node that is away keeps what is its own for so long");
const PORT: (&str, &str) = ("peer port", "nodes pass requests on to each other, and fetch templates there");

fn check((name, why): (&'static str, &'static str), status: Status, found: String, remedy: Option<&str>) -> Check {
    Check { name, status, found, why, remedy: remedy.map(str::to_owned), lack: None }
}

/// Looks at the cluster that is named.
pub(super) async fn look(args: &ClusterAccessArgs) -> Vec<Check> {
    let failed = |what, error: &anyhow::Error, remedy: &str| vec![check(what, Status::Fail, format!("{error:#}"), Some(remedy))];
    let access = match node::access(args) {
        Ok(access) => access,
        Err(error) => return failed(DATABASE, &error, "name it with `--cluster URL`"),
    };
    let secret = match node::secret(&access) {
        Ok(secret) => secret,
        Err(error) => {
            return failed(
                SECRET,
                &error,
                "name the file that `firkin cluster found` made with `--cluster-secret-file`, mode 600",
            );
        }
    };
    match enter(&access, &secret).await {
        Ok(members) => of_cluster(&members, &secret).await,
        Err(refused) => vec![refused],
    }
}

/// The cluster, or why it is not entered.
async fn enter(access: &Access, secret: &ClusterSecret) -> Result<Members, Check> {
    let address = catalog::address(&access.catalog);
    let address = address
        .map_err(|error| check(DATABASE, Status::Fail, format!("{error:#}"), Some("mend the address that `--cluster` names")))?;
    Members::at(address, &secret.fingerprint()).await.map_err(|error| {
        let what = match &error {
            OpenError::WrongSecret { .. } => SECRET,
            OpenError::Tables { .. } | OpenError::Protocol { .. } => TABLES,
            _ => DATABASE,
        };
        let remedy = catalog::advice(&error);
        check(what, Status::Fail, firkin_causes::chain(&error), remedy.as_deref())
    })
}

async fn of_cluster(members: &Members, secret: &ClusterSecret) -> Vec<Check> {
    let cluster = members.cluster();
    let tag = format!("that of cluster `{}`, known by {}", cluster.id, cluster.secret_fingerprint);
    let mut checks = vec![check(SECRET, Status::Ok, tag, None)];
    let away = |error| check(DATABASE, Status::Fail, firkin_causes::chain(&error), Some("see its log: it answered a moment ago"));
    match members.health().await {
        Ok(health) => checks.extend([of_database(&health), of_tables(&health), of_clock(health.clock)]),
        Err(error) => checks.push(away(error)),
    }
    checks.push(of_times(&cluster.times));
    match members.nodes().await {
        Ok(nodes) if nodes.is_empty() => {
            let remedy = "start one: `firkin up --cluster URL --cluster-secret-file FILE`";
            checks.push(check(PORT, Status::Warn, "the cluster has no node yet".to_owned(), Some(remedy)));
        }
        Ok(nodes) => {
            let tried = stream::iter(&nodes).map(|node| of_port(&nodes, node, secret)).buffered(AT_ONCE);
            checks.extend(tried.collect::<Vec<_>>().await);
        }
        Err(error) => checks.push(away(error)),
    }
    checks
}

fn of_database(health: &Health) -> Check {
    let standby = match (health.waits_for.as_str(), health.followers) {
        ("", _) => "no standby is waited for".to_owned(),
        (names, there) => format!("a commit waits for standby {names}, of which {there} follow"),
    };
    let found = format!("PostgreSQL {}, {:.1} ms away; {standby}", health.version, health.round_trip.as_secs_f64() * 1000.0);
    let major = health.version.split(['.', ' ']).next().and_then(|major| major.parse::<u32>().ok());
    let warning = if !health.durable {
        Some("set `fsync` and `synchronous_commit` to `on`: what was recorded is lost with its host's power otherwise")
    } else if major.is_some_and(|major| major < OLDEST) {
        Some("use PostgreSQL 14 or newer")
    } else {
        None
    };
    check(DATABASE, if warning.is_some() { Status::Warn } else { Status::Ok }, found, warning)
}

fn of_tables(health: &Health) -> Check {
    let Health { schema, schema_known, written_by, .. } = health;
    let found = format!("version {schema}, made by firkin {written_by}; this program has {schema_known}");
    match schema < schema_known {
        true => check(TABLES, Status::Warn, found, Some("nothing: the next node that starts brings them up to date")),
        false => check(TABLES, Status::Ok, found, None),
    }
}

fn of_clock(offset: ClockOffset) -> Check {
    let side = if offset.ahead_ms > 0 { "ahead of" } else { "behind" };
    let found =
        format!("{} ms {side} the database's, give or take {} ms", offset.ahead_ms.unsigned_abs(), offset.within.as_millis());
    let remedy = "have NTP set it, here or on the database's host (`timedatectl`)";
    match clock::bear(offset) {
        Err(_) => {
            let found = format!("{found}: a node does not start beyond {} min", BEARABLE.as_secs() / 60);
            check(CLOCK, Status::Fail, found, Some(remedy))
        }
        Ok(()) if offset.at_least() > NOTICEABLE => check(CLOCK, Status::Warn, found, Some(remedy)),
        Ok(()) => check(CLOCK, Status::Ok, found, None),
    }
}

fn of_times(times: &LeaseTimes) -> Check {
    let LeaseTimes { lasts, renew_every, stop_after: _, grace } = *times;
    let found = format!(
        "renewed every {renew_every:?}, over after {lasts:?}; what is paused on a node that is away is had elsewhere {grace:?} after that"
    );
    match lasts < renew_every * LEAST_TRIES {
        true => check(
            LEASES,
            Status::Warn,
            found,
            Some("the database may not be away for a moment: found clusters whose leases are longer"),
        ),
        false => check(LEASES, Status::Ok, found, None),
    }
}

async fn of_port(nodes: &[NodeRecord], node: &NodeRecord, secret: &ClusterSecret) -> Check {
    let NodeRecord { name, address, .. } = node;
    if !node.is_alive() {
        let found = format!("node `{name}` at {address} is {} and was not asked", node.word());
        return match node.word() {
            AWAY => {
                let found = format!("{found}: its lease has been over for {}", ago(node.lease_over.as_secs()));
                check(PORT, Status::Warn, found, Some("start its server; or say that it is off, `firkin node forget`"))
            }
            _ => check(PORT, Status::Ok, found, None),
        };
    }
    match knock(nodes, node, secret).await {
        Ok(took) => {
            let ms = took.as_secs_f64() * 1000.0;
            check(PORT, Status::Ok, format!("node `{name}` at {address} shook hands and answered in {ms:.0} ms"), None)
        }
        Err(error) => {
            let found = format!("node `{name}` at {address}: {}", firkin_causes::chain(&error));
            let remedy = "let this host through to that port, or mend the address that the node was started with (`--peer-listen`, `--peer-address`)";
            check(PORT, Status::Fail, found, Some(remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn health() -> Health {
        Health {
            version: "15.14 (Debian 15.14-0+deb12u1)".to_owned(),
            round_trip: Duration::from_micros(400),
            durable: true,
            waits_for: String::new(),
            followers: 0,
            schema: 2,
            schema_known: 2,
            written_by: "0.1.0".to_owned(),
            clock: ClockOffset { ahead_ms: 2, within: Duration::from_millis(1) },
        }
    }

    #[test]
    fn a_finding_that_is_not_in_order_has_its_remedy() {
        let status = |check: Check| {
            assert_eq!(check.status == Status::Ok, check.remedy.is_none(), "{check:?}");
            check.status
        };
        assert_eq!(status(of_database(&health())), Status::Ok);
        assert_eq!(status(of_database(&Health { durable: false, ..health() })), Status::Warn);
        assert_eq!(status(of_database(&Health { version: "13.2".to_owned(), ..health() })), Status::Warn);
        assert_eq!(status(of_tables(&health())), Status::Ok);
        assert_eq!(status(of_tables(&Health { schema: 1, ..health() })), Status::Warn);
        for (ahead_ms, expected) in [(0, Status::Ok), (5_001, Status::Ok), (-6_000, Status::Warn), (1_800_002, Status::Fail)] {
            assert_eq!(status(of_clock(ClockOffset { ahead_ms, within: Duration::from_millis(1) })), expected, "{ahead_ms}");
        }
        assert_eq!(status(of_times(&LeaseTimes::default())), Status::Ok);
        let short = LeaseTimes { renew_every: Duration::from_secs(41), ..LeaseTimes::default() };
        assert_eq!(status(of_times(&short)), Status::Warn);
    }
}
