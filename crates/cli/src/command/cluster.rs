//! `firkin cluster ...`: a catalogue as a whole is moved into a database, backed up, and held against the files that are there.

use std::{
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::Context as _;
use firkin_postgres::Catalogue;
use firkin_runtime::{
    catalogue::{self, CatalogueError, Copied, Held, Source},
    state_dir::OpenError,
    store::catalog::Catalog,
};
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;

use super::catalog;
use crate::{
    args::cluster::{BackupArgs, ClusterCommand, InitArgs, RestoreCheckArgs},
    catalog::CatalogSettings,
    failure::{Advise as _, ExitStatus, advised},
    output::{self, Table},
    settings::Settings,
};

/// Standard input or output, in the place of a file.
const STREAM: &str = "-";

/// Runs the command.
pub(crate) async fn run(settings: &Settings, command: ClusterCommand) -> anyhow::Result<ExitStatus> {
    match command {
        ClusterCommand::Init(args) => init(settings, &args).await,
        ClusterCommand::Found(args) => super::node::found(settings, &args).await,
        ClusterCommand::RotateSecret(args) => super::node::rotate_secret(settings, &args).await,
        ClusterCommand::Status(args) => super::cluster_status::status(settings, &args).await,
        ClusterCommand::Explain(args) => super::cluster_where::explain(settings, &args).await,
        ClusterCommand::Stranded(args) => super::cluster_where::stranded(settings, &args).await,
        ClusterCommand::Backup(args) => backup(settings, &args).await,
        ClusterCommand::RestoreCheck(args) => restore_check(settings, &args).await,
    }
}

fn named(settings: &Settings) -> anyhow::Result<Option<Catalogue>> {
    settings.catalog.as_ref().map(catalog::catalogue).transpose()
}

async fn init(settings: &Settings, args: &InitArgs) -> anyhow::Result<ExitStatus> {
    let Some(there) = named(settings)? else {
        return Err(anyhow::anyhow!("no database was named"))
            .hint("`--catalog postgres://USER@HOST:PORT/DATABASE` names it")
            .status(ExitStatus::Usage);
    };
    let mut backup = args.from.as_deref().map(reader).transpose()?;
    let source = match &mut backup {
        Some(backup) => Source::Backup(&mut **backup),
        None => Source::Own,
    };
    let copied = catalogue::init(&settings.state_dir, &there, source).await.map_err(refused)?;
    output::result(settings.format, &copied, || table(&copied))?;
    output::note(&format!(
        "what is on record of `{}` is in {} from now on; hint: start the server with{}",
        settings.state_dir.display(),
        there.address(),
        settings.catalog.as_ref().map(CatalogSettings::options).unwrap_or_default()
    ));
    Ok(ExitStatus::Success)
}

async fn backup(settings: &Settings, args: &BackupArgs) -> anyhow::Result<ExitStatus> {
    let there = named(settings)?;
    let there = there.as_ref().map(|there| there as &dyn Catalog);
    if args.to == Path::new(STREAM) {
        let mut to = BufWriter::new(io::stdout());
        catalogue::backup(&settings.state_dir, there, &mut to).await.map_err(refused)?;
        to.flush()?;
        return Ok(ExitStatus::Success);
    }
    // It is whole under its name, or not there: keys' digests and tokens are in it, which are nobody else's.
    let mut aside = args.to.clone().into_os_string();
    aside.push(".part");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    let mut to = BufWriter::new(file);
    let written = async {
        let copied = catalogue::backup(&settings.state_dir, there, &mut to).await.map_err(refused)?;
        to.flush()?;
        to.get_ref().sync_all()?;
        fs::rename(&aside, &args.to)?;
        anyhow::Ok(copied)
    };
    let copied = written.await.inspect_err(|_| drop(fs::remove_file(&aside)))?;
    output::result(settings.format, &copied, || table(&copied))?;
    Ok(ExitStatus::Success)
}

async fn restore_check(settings: &Settings, args: &RestoreCheckArgs) -> anyhow::Result<ExitStatus> {
    let there = named(settings)?;
    let held = match &args.backup {
        Some(path) => catalogue::check_backup(&settings.state_dir, &mut *reader(path)?).await,
        None => catalogue::check(&settings.state_dir, there.as_ref().map(|there| there as &dyn Catalog)).await,
    };
    let held = held.map_err(refused)?;
    output::result(settings.format, &held, || told(&held))?;
    for missing in &held.missing {
        output::note(&format!("artifact {} is not there: {} cannot be restored", missing.artifact, missing.needed_by.join(", ")));
    }
    if !held.unnamed.is_empty() {
        let count = held.unnamed.len();
        output::note(&format!("{count} artifacts are there that it does not name; a server that starts with it removes them"));
    }
    if let Some(there) = there.filter(|_| args.accept) {
        let question = "go on with this catalogue, and lose what it does not name?";
        if !output::agreed(settings.consent, question)? {
            return Err(anyhow::anyhow!("nothing was changed")).hint("`--yes` answers");
        }
        catalogue::accept(&settings.state_dir, &there).await.map_err(refused)?;
        output::note("accepted: the next server goes on with it");
        return Ok(ExitStatus::Success);
    }
    Ok(if held.is_whole() { ExitStatus::Success } else { ExitStatus::Failure })
}

fn reader(path: &Path) -> anyhow::Result<Box<dyn BufRead + Send>> {
    if path == Path::new(STREAM) {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = fs::File::open(path).context("cannot read the backup")?;
    Ok(Box::new(BufReader::new(file)))
}

/// The error, with what helps.
fn refused(error: CatalogueError) -> anyhow::Error {
    let hint = match &error {
        CatalogueError::Open(OpenError::Locked { .. }) => {
            Some("stop that server first (`firkin up --on-exit leave` keeps its sandboxes running)".to_owned())
        }
        CatalogueError::Open(OpenError::CatalogElsewhere { address, .. }) => Some(catalog::elsewhere(address)),
        CatalogueError::Open(OpenError::CatalogHere { .. }) => {
            Some("leave `--catalog` out, or bring it there first with `firkin cluster init`".to_owned())
        }
        CatalogueError::Nothing { .. } => Some("`--state-dir` names the directory that a server used".to_owned()),
        _ => catalog::advice(&error),
    };
    advised(error, hint, None)
}

fn table(copied: &Copied) -> Table {
    let mut table = Table::new(&["table", ">rows"]);
    for (name, rows) in &copied.rows {
        table.row([name.clone(), rows.to_string()]);
    }
    table
}

fn told(held: &Held) -> Table {
    let mut table = Table::new(&["recorded at", ">running", ">paused", ">versions", ">missing artifacts", ">unnamed artifacts"]);
    table.row([
        held.copied.at.to_string(),
        held.running.to_string(),
        held.paused.to_string(),
        held.copied.of("versions").to_string(),
        held.missing.len().to_string(),
        held.unnamed.len().to_string(),
    ]);
    table
}
