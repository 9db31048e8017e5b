//! Why a catalogue is not opened: what is there is not what should be, or is somebody's.

use std::error::Error;

use crate::{lease::LeaseTimes, schema::MigrateError};

/// Why a catalogue was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be reached, or says no.
    #[error("cannot reach the catalogue at {address}")]
    Unreachable {
        /// Where, without a password.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another server has it.
    #[error("another server has the catalogue at {address}: that of installation `{installation}`, on host `{host}`")]
    Taken {
        /// Where.
        address: String,
        /// The other's.
        installation: String,
        /// Where that runs.
        host: String,
    },
    /// It is another installation's.
    #[error(
        "the catalogue at {address} is that of installation `{theirs}`, whose state directory is another one than this (`{ours}`)"
    )]
    Foreign {
        /// Where.
        address: String,
        /// Its installation.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// There is nothing in it, and there should be.
    #[error(
        "the catalogue at {address} is empty, and that of this state directory is not: it is another database, or a lost one"
    )]
    Empty {
        /// Where.
        address: String,
    },
    /// It is an old copy of what it was.
    #[error(
        "the catalogue at {address} is in term {found}, and this state directory had it in {known}: it is a copy from before, and \
         what was recorded since is not in it"
    )]
    WentBack {
        /// Where.
        address: String,
        /// Its term.
        found: i64,
        /// The last that is known.
        known: i64,
    },
    /// Another copy of the state directory has had it since.
    #[error(
        "the catalogue at {address} is in term {found}, and this state directory had it in {known}: another copy of the directory has \
         had it since"
    )]
    WentOn {
        /// Where.
        address: String,
        /// Its term.
        found: i64,
        /// The last that is known.
        known: i64,
    },
    /// It went away while it was taken, and may be ours.
    #[error("the catalogue at {address} went away while it was taken")]
    Unsettled {
        /// Where, without a password.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its tables cannot be made or brought up to date.
    #[error("cannot use the tables of the catalogue at {address}")]
    Tables {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: MigrateError,
    },
    /// It is a cluster's: nodes have it, and no server has it alone.
    #[error("the catalogue at {address} is that of cluster `{cluster}`, whose servers are its nodes")]
    IsCluster {
        /// Where.
        address: String,
        /// Which.
        cluster: String,
    },
    /// It is no cluster's.
    #[error("the catalogue at {address} is not a cluster's yet: nothing has been initialised there")]
    NoCluster {
        /// Where.
        address: String,
    },
    /// Somebody's records are in it, and whoever would have it be a cluster's is another.
    #[error(
        "the catalogue at {address} is that of installation `{installation}`, and what is on record there would be no node's"
    )]
    Founded {
        /// Where.
        address: String,
        /// Whose.
        installation: String,
    },
    /// Times that do not hold.
    #[error(
        "leases of {:?} that are renewed every {:?} and whose machines are stopped after {:?} do not hold: each has to be shorter than \
         what comes after it, and none longer than a day", times.lasts, times.renew_every, times.stop_after
    )]
    Times {
        /// Those.
        times: LeaseTimes,
    },
    /// It is another cluster's than that of the secret.
    #[error("the catalogue at {address} is that of cluster `{cluster}`, and the secret of this node is another one's")]
    WrongSecret {
        /// Where.
        address: String,
        /// Which.
        cluster: String,
    },
    /// Its nodes speak otherwise with each other.
    #[error("the nodes of the cluster at {address} speak protocol {found}, this version speaks {known}")]
    Protocol {
        /// Where.
        address: String,
        /// Theirs.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A node runs whose version is too far from this one.
    #[error(
        "node `{node}` of the cluster at {address} speaks protocol {theirs}, and this version speaks {ours}: nodes serve together whose \
         protocols are next to each other"
    )]
    TooFar {
        /// Where.
        address: String,
        /// Its name.
        node: String,
        /// Its protocol.
        theirs: i64,
        /// Ours.
        ours: i64,
    },
    /// A node of this id runs.
    #[error("node `{node}` of the cluster at {address} runs already, on host `{host}`: two servers have the same id")]
    NodeTaken {
        /// Where.
        address: String,
        /// Which.
        node: String,
        /// Where that runs.
        host: String,
    },
}
