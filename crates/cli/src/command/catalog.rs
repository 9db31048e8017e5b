//! The catalogue that was named, opened, tried, and what helps where it is not the right one.

use firkin_postgres::{Address, Catalogue};

use crate::{
    catalog::CatalogSettings,
    failure::advised,
    host::{Check, Status},
    serverfile,
};

/// The catalogue, as a runtime is told of it.
pub(crate) fn catalogue(settings: &CatalogSettings) -> anyhow::Result<Catalogue> {
    Ok(Catalogue::at(address(settings)?))
}

/// Where it is, with the password.
pub(crate) fn address(settings: &CatalogSettings) -> anyhow::Result<Address> {
    let address = settings.address()?;
    Ok(match settings.password() {
        Some(file) => address.with_password(serverfile::read_secret(file)?.trim()),
        None => address,
    })
}

/// Whether it answers, for who looks at this host.
pub(crate) async fn check(settings: &CatalogSettings) -> Check {
    let (status, found, remedy) = match greeted(settings).await {
        Ok((found, true)) => (Status::Ok, found, None),
        Ok((found, false)) => {
            let remedy =
                "set `fsync` and `synchronous_commit` to `on`: paused sandboxes are lost with its host's power otherwise";
            (Status::Warn, found, Some(remedy.to_owned()))
        }
        Err(error) => {
            let remedy = "start it, or mend `--catalog`: no server starts without it".to_owned();
            (Status::Fail, format!("{error:#}"), Some(remedy))
        }
    };
    let why = "it is where it is recorded what there is";
    Check { name: "catalogue", status, found, why, remedy, lack: None }
}

async fn greeted(settings: &CatalogSettings) -> anyhow::Result<(String, bool)> {
    let greeting = catalogue(settings)?.greet().await?;
    let answered = greeting.round_trip.as_secs_f64() * 1000.0;
    let lax = if greeting.durable { "" } else { ", which keeps what it says only until its host loses power" };
    let address = settings.address()?;
    Ok((format!("PostgreSQL {} at {address}, {answered:.1} ms away{lax}", greeting.version), greeting.durable))
}

/// What helps where a catalogue and a state directory do not go together.
pub(crate) fn elsewhere(address: &str) -> String {
    format!("say `--catalog {address}`, with the user: this state directory goes with that catalogue and with no other")
}

/// Advice for an error of a catalogue that was not opened, if there is any.
pub(crate) fn advice(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use firkin_postgres::OpenError;
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let found = causes.find_map(|error| error.downcast_ref::<OpenError>())?;
    Some(match found {
        OpenError::Unreachable { .. } | OpenError::Unsettled { .. } => "start that database, or mend its address (`--catalog` or `--cluster`), which `firkin doctor` with the same option tries".to_owned(),
        OpenError::Taken { .. } => "stop that server first: a catalogue is one server's".to_owned(),
        OpenError::Foreign { .. } => "name the database that this state directory goes with, or make an empty one for it".to_owned(),
        OpenError::Empty { .. } => {
            "name the database that this state directory goes with; if it is lost, `firkin cluster init --from BACKUP` fills this one".to_owned()
        }
        OpenError::WentBack { .. } | OpenError::WentOn { .. } => {
            "`firkin cluster restore-check` says what would be lost; with `--accept` this state directory goes on with it. A cluster's catalogue is brought \
             back by PostgreSQL's own means, to a moment after this node's last start"
                .to_owned()
        }
        OpenError::IsCluster { .. } => "start this server as one of its nodes, or name another database".to_owned(),
        OpenError::NoCluster { .. } => "found the cluster there first, or name the database that it has".to_owned(),
        OpenError::Founded { .. } => "found the cluster from the state directory whose catalogue it is, which stays its own".to_owned(),
        OpenError::Times { .. } => "give times of which each is shorter than what comes after it".to_owned(),
        OpenError::WrongSecret { .. } => "give this node the secret that the other nodes have".to_owned(),
        OpenError::TooFar { theirs, ours, .. } if theirs < ours => {
            "replace the other nodes by the version that comes after theirs first, and then by this one".to_owned()
        }
        OpenError::TooFar { .. } => "use the version of firkin that the other nodes have, or the one before it".to_owned(),
        OpenError::Protocol { .. } => "use the version of firkin that the other nodes have, or one beside it".to_owned(),
        OpenError::NodeTaken { .. } => {
            "stop that server first; if this state directory is a copy of its, make a new one for this node".to_owned()
        }
        OpenError::Tables { .. } => "use the version of firkin that they are of, or a newer one".to_owned(),
    })
}

/// An error with the advice that it calls for.
pub(crate) fn advising(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let hint = advice(&error);
    advised(error, hint, None)
}
