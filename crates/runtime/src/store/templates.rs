//! Templates and snapshots. A template is one row with one id, whatever is built of it; what a build made is a version of it, and
//! tags lead to versions.
//!
//! ```text
//!   templates   id ─ name, and what all of its versions share
//!      │
//!   versions    build id ─ artifact, size, commands     a snapshot is a template with one version
//!      │
//!   names       `name:tag`, each leads to one version; of a template without a name `id:tag`; each team has names of its own
//!
//!   former_ids  ids from the time when each tagged build had one of its own
//! ```
//!
//! Of another team's only what is public is found, and the host's standard templates by their bare names; to nobody else is either shown,
//! or changed by anybody else. A version that loses its last tag to another build, or to a removal, is gone with it: nothing could name it.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{SandboxRecord, Store, TemplateRecord, bodies, from_json, one, sqlite, to_json};
use crate::{
    ground::{
        ids::{BuildId, TemplateId},
        reference::{NoTemplate, Reference, STANDARD, Sought, TemplateName},
        team::{Scope, TeamId},
    },
    store::{StoreError, spec::SandboxId},
};

pub(super) const TABLES: &str = "
    CREATE TABLE templates (
        id TEXT PRIMARY KEY, team TEXT NOT NULL, name TEXT, body TEXT NOT NULL, UNIQUE (team, name)
    ) WITHOUT ROWID;
    CREATE TABLE versions (
        build_id TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates (id), body TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX versions_of_template ON versions (template_id);
    CREATE TABLE names (
        team TEXT NOT NULL, name TEXT NOT NULL, build_id TEXT NOT NULL REFERENCES versions (build_id), assigned_at TEXT NOT NULL,
        PRIMARY KEY (team, name)
    ) WITHOUT ROWID;
    CREATE INDEX names_of_version ON names (build_id);
    CREATE TABLE former_ids (
        id TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates (id), name TEXT
    ) WITHOUT ROWID;
    CREATE INDEX former_ids_of_template ON former_ids (template_id);";

/// The version of a name.
const NAMED: &str = "WHERE v.build_id = (SELECT build_id FROM names WHERE name = ?1 AND team = ?2)";

/// The versions of a template.
pub(super) const OF_TEMPLATE: &str = "WHERE v.template_id = ?1 ORDER BY v.build_id";

/// What all versions of a template share.
const FAMILY: &str = "SELECT body FROM templates WHERE id = ?1";

/// The template of a team's name.
const ID_OF_NAME: &str = "SELECT id FROM templates WHERE name = ?1 AND team = ?2";

/// What an id of earlier has become.
const FORMER_ID: &str = "SELECT template_id, name FROM former_ids WHERE id = ?1";

/// A template, or a snapshot: what all of its versions share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FamilyRecord {
    pub(crate) id: TemplateId,
    /// Whose it is. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "TeamId::is_first")]
    pub(crate) owner: TeamId,
    /// Without tag. Absent where none was given, and for snapshots, which are named one by one.
    pub(crate) name: Option<TemplateName>,
    pub(crate) public: bool,
    #[serde(default)]
    pub(crate) description: Option<String>,
    pub(crate) created_at: Timestamp,
    /// Last built.
    pub(crate) updated_at: Timestamp,
    pub(crate) spawn_count: u64,
    pub(crate) last_spawned_at: Option<Timestamp>,
    pub(crate) snapshot_of: Option<SandboxId>,
}

impl FamilyRecord {
    /// Of its first version.
    pub(crate) fn of(first: &TemplateRecord) -> Self {
        Self {
            id: first.id.clone(),
            owner: first.owner.clone(),
            name: first.family_name(),
            public: first.setup.public,
            description: first.description.clone(),
            created_at: first.created_at,
            updated_at: first.updated_at,
            spawn_count: first.spawn_count,
            last_spawned_at: first.last_spawned_at,
            snapshot_of: first.snapshot_of.clone(),
        }
    }

    /// Of a template that has no version yet.
    pub(crate) fn unbuilt((id, owner): (TemplateId, TeamId), name: Option<TemplateName>, at: Timestamp) -> Self {
        Self {
            id,
            owner,
            name,
            public: false,
            description: None,
            created_at: at,
            updated_at: at,
            spawn_count: 0,
            last_spawned_at: None,
            snapshot_of: None,
        }
    }

    /// A version with what it shares with the others.
    fn share(self, version: TemplateRecord) -> TemplateRecord {
        TemplateRecord {
            id: self.id,
            owner: self.owner,
            created_at: self.created_at,
            spawn_count: self.spawn_count,
            last_spawned_at: self.last_spawned_at,
            description: self.description,
            setup: crate::store::Setup { public: self.public, ..version.setup },
            ..version
        }
    }
}

impl TemplateRecord {
    /// The name before its tags, unless it has none.
    pub(crate) fn base_name(&self) -> Option<&TemplateName> {
        self.names.first().map(|full| &full.name).filter(|name| name.as_str() != self.id.as_str())
    }

    /// The name of the template that it is a version of.
    fn family_name(&self) -> Option<TemplateName> {
        self.base_name().filter(|_| self.snapshot_of.is_none()).cloned()
    }

    /// Its tags.
    pub(crate) fn tags(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(Reference::tag)
    }
}

/// Where a reference leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// To this version.
    Found(Box<TemplateRecord>),
    /// To a template that has no such tag, but these.
    NoTag { template: String, tag: String, tags: Vec<String> },
    /// Nowhere.
    Absent,
}

impl Lookup {
    pub(crate) fn found(self) -> Option<TemplateRecord> {
        match self {
            Self::Found(record) => Some(*record),
            Self::NoTag { .. } | Self::Absent => None,
        }
    }
}

/// What a tag stands for, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// With the name.
    pub(crate) name: Reference,
    pub(crate) build_id: BuildId,
    pub(crate) at: Timestamp,
}

impl Store {
    /// Records a snapshot with its names, taking them from whoever of its team had them, unless the team has as many as `most`: then it
    /// gives how many that are. Gives what is on record.
    pub(crate) async fn put_snapshot(
        &self,
        record: TemplateRecord,
        most: Option<u32>,
    ) -> Result<Result<TemplateRecord, u32>, StoreError> {
        self.run(move |tx| match most.map(|most| (most, snapshots_of_team(tx, &record.owner))) {
            Some((most, used)) if used.as_ref().is_ok_and(|used| *used >= most) => used.map(Err),
            Some((_, Err(error))) => Err(error),
            Some((_, Ok(_))) | None => put_template(tx, &record).map(Ok),
        })
        .await
    }

    /// How many snapshots a team has.
    pub(crate) async fn count_snapshots(&self, team: TeamId) -> Result<u32, StoreError> {
        self.run(move |tx| snapshots_of_team(tx, &team)).await
    }

    /// Notes what is run once in every warm session of a version, if that is there.
    pub(crate) async fn set_warm_up(&self, build_id: BuildId, warm_up: Option<String>) -> Result<(), StoreError> {
        self.run(move |tx| {
            let found: Option<TemplateRecord> =
                one(tx, "versions", "SELECT body FROM versions WHERE build_id = ?1", build_id.as_str())?;
            found.map_or(Ok(()), |record| put_version(tx, &TemplateRecord { warm_up, ..record }))
        })
        .await
    }

    /// Has tags stand for this version, taking them from whichever they stood for. Whether it is there.
    pub(crate) async fn add_names(&self, build_id: BuildId, names: Vec<Reference>) -> Result<bool, StoreError> {
        self.run(move |tx| {
            let id = tx
                .query_row("SELECT template_id FROM versions WHERE build_id = ?1", params![build_id], |row| row.get(0))
                .optional()
                .map_err(sqlite("read a version"))?;
            let Some(id): Option<TemplateId> = id else { return Ok(false) };
            let Some(family) = family(tx, &id)? else { return Ok(false) };
            give(tx, (&family.owner, &build_id), &names, Timestamp::now())?;
            drop_untagged(tx, &id)?;
            Ok(true)
        })
        .await
    }

    /// Removes names of a team. When one of them is not there, it is returned and all stay.
    pub(crate) async fn remove_names(&self, team: TeamId, names: Vec<Reference>) -> Result<Option<Reference>, StoreError> {
        self.run(move |tx| {
            let mut of = Vec::new();
            for name in &names {
                let query = "SELECT v.template_id FROM names n JOIN versions v ON v.build_id = n.build_id
                             WHERE n.name = ?1 AND n.team = ?2";
                let id = tx.query_row(query, params![name, team], |row| row.get(0)).optional().map_err(sqlite("read a name"))?;
                let Some(id): Option<TemplateId> = id else { return Ok(Some(name.clone())) };
                of.push(id);
            }
            for (name, id) in names.iter().zip(of) {
                let remove = "DELETE FROM names WHERE name = ?1 AND team = ?2";
                tx.execute(remove, params![name, team]).map_err(sqlite("remove a name"))?;
                drop_untagged(tx, &id)?;
            }
            Ok(None)
        })
        .await
    }

    /// Counts one more sandbox of a template.
    pub(crate) async fn count_spawn(&self, id: TemplateId, at: Timestamp) -> Result<(), StoreError> {
        self.run(move |tx| {
            let Some(family) = family(tx, &id)? else { return Ok(()) };
            put_family(tx, &FamilyRecord { spawn_count: family.spawn_count + 1, last_spawned_at: Some(at), ..family })
        })
        .await
    }

    /// Changes what a reference leads to, whether or not anything was built of it: what is given, and no description where that is
    /// empty. Gives its id, if it is there.
    pub(crate) async fn update_template(
        &self,
        (scope, sought): (Scope, Sought),
        public: Option<bool>,
        description: Option<String>,
    ) -> Result<Option<TemplateId>, StoreError> {
        self.run(move |tx| {
            let Some(mut family) = family_of(tx, &scope, &sought)? else { return Ok(None) };
            if let Some(public) = public {
                family.public = public;
            }
            if let Some(description) = description {
                family.description = Some(description).filter(|text| !text.is_empty());
            }
            put_family(tx, &family)?;
            Ok(Some(family.id))
        })
        .await
    }

    /// Removes a template or snapshot with all of its versions, tags and builds, unless sandboxes of it are on record: then it gives
    /// these, and all stays.
    pub(crate) async fn delete_template(&self, id: TemplateId) -> Result<Vec<(TeamId, SandboxId)>, StoreError> {
        self.run(move |tx| {
            let sandboxes: Vec<SandboxRecord> = bodies(tx, "sandboxes", "SELECT body FROM sandboxes ORDER BY id", [])?;
            let of_it: Vec<_> = sandboxes.into_iter().filter(|s| s.template_id == id).map(|s| (s.owner, s.id)).collect();
            if !of_it.is_empty() {
                return Ok(of_it);
            }
            for part in [
                "DELETE FROM names WHERE build_id IN (SELECT build_id FROM versions WHERE template_id = ?1)",
                "DELETE FROM versions WHERE template_id = ?1",
                "DELETE FROM former_ids WHERE template_id = ?1",
                "DELETE FROM build_logs WHERE id IN (SELECT id FROM builds WHERE json_extract(body, '$.template_id') = ?1)",
                "DELETE FROM builds WHERE json_extract(body, '$.template_id') = ?1",
                "DELETE FROM templates WHERE id = ?1",
            ] {
                tx.execute(part, params![id]).map_err(sqlite("delete a template"))?;
            }
            Ok(of_it)
        })
        .await
    }

    /// Every version of every template of a scope, and every snapshot, with the names that lead to it now. Those of one template are
    /// together.
    pub(crate) async fn templates(&self, scope: Scope) -> Result<Vec<TemplateRecord>, StoreError> {
        let all = self.run(|tx| versions(tx, "ORDER BY v.template_id, v.build_id", [])).await?;
        Ok(all.into_iter().filter(|record| scope.sees(&record.owner)).collect())
    }

    /// The version that a reference leads to, among what a scope owns.
    pub(crate) async fn template(&self, scope: Scope, sought: impl Into<Sought>) -> Result<Lookup, StoreError> {
        let sought = sought.into();
        self.run(move |tx| lookup(tx, (&scope, Use::Own), &sought)).await
    }

    /// The version that a reference leads to, among what a scope may start from: also what is public, and the host's standard templates.
    pub(crate) async fn usable_template(&self, scope: Scope, sought: impl Into<Sought>) -> Result<Lookup, StoreError> {
        let sought = sought.into();
        self.run(move |tx| lookup(tx, (&scope, Use::StartFrom), &sought)).await
    }

    /// What a scope may start from of a reference, whatever its tag, and whether or not anything was built.
    pub(crate) async fn usable_family(
        &self,
        scope: Scope,
        sought: impl Into<Sought>,
    ) -> Result<Option<FamilyRecord>, StoreError> {
        let sought = sought.into();
        self.run(move |tx| found_by(tx, (&scope, Use::StartFrom), &sought)).await
    }

    /// The template or snapshot of a reference that a scope owns, whatever its tag, and whether or not anything was built.
    pub(crate) async fn family(&self, scope: Scope, sought: impl Into<Sought>) -> Result<Option<FamilyRecord>, StoreError> {
        let sought = sought.into();
        self.run(move |tx| family_of(tx, &scope, &sought)).await
    }
}

/// What something is looked up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// To be shown, changed or removed.
    Own,
    /// To start from it.
    StartFrom,
}

/// For whom something is looked up, and what for.
type For<'a> = (&'a Scope, Use);

/// Whether what was found is there for who looks.
fn is_there((scope, to): For<'_>, family: &FamilyRecord) -> bool {
    let standard = || family.owner.is_first() && family.name.as_ref().is_some_and(is_standard);
    scope.sees(&family.owner) || (to == Use::StartFrom && (family.public || standard()))
}

fn is_standard(name: &TemplateName) -> bool {
    STANDARD.contains(&name.as_str())
}

/// Whose names are looked through, in this order: those of the team that is named, else one's own, then the host's standard ones.
fn teams((scope, to): For<'_>, sought: &Sought) -> Vec<TeamId> {
    let mut teams = vec![sought.team.clone().unwrap_or_else(|| scope.owner())];
    if sought.team.is_none() && to == Use::StartFrom && is_standard(&sought.reference.name) && !teams[0].is_first() {
        teams.push(TeamId::first());
    }
    teams
}

/// A template that an id or a name leads to.
struct FamilyFound {
    family: FamilyRecord,
    /// The `name:tag` that it stood for by itself, if it is a former id.
    stood_for: Option<Reference>,
}

impl NoTemplate {
    /// What a reference was found to lead to, or why it leads nowhere.
    pub(crate) fn unless_found(reference: &str, found: Lookup) -> Result<TemplateRecord, Self> {
        match found {
            Lookup::Found(record) => Ok(*record),
            Lookup::NoTag { template, tag, tags } => Err(Self::NoTag { template, tag, tags }),
            Lookup::Absent => Err(Self::Absent(reference.to_owned())),
        }
    }
}

/// By an id, else by a name. What is there for others only is as good as not there.
fn family_found(c: &Connection, by: For<'_>, sought: &Sought) -> Result<Option<FamilyFound>, StoreError> {
    let base = sought.reference.name.as_str();
    let there = |found: Option<FamilyRecord>| found.filter(|family| is_there(by, family));
    let of_team = |family: &FamilyRecord| sought.team.as_ref().is_none_or(|team| *team == family.owner);
    if let Some(family) = there(one(c, "templates", FAMILY, base)?).filter(of_team) {
        return Ok(Some(FamilyFound { family, stood_for: None }));
    }
    for team in teams(by, sought) {
        if let Some(id) = id_of_name(c, &team, &sought.reference.name)?
            && let Some(family) = there(family(c, &id)?)
        {
            return Ok(Some(FamilyFound { family, stood_for: None }));
        }
    }
    let former = c.query_row(FORMER_ID, params![base], |row| Ok((row.get(0)?, row.get(1)?))).optional();
    let Some((id, stood_for)) = former.map_err(sqlite("read a former id"))? else { return Ok(None) };
    let family = there(family(c, &id)?).filter(of_team);
    Ok(family.map(|family| FamilyFound { family, stood_for }))
}

/// The template or snapshot of a reference that `scope` owns.
pub(super) fn family_of(c: &Connection, scope: &Scope, sought: &Sought) -> Result<Option<FamilyRecord>, StoreError> {
    found_by(c, (scope, Use::Own), sought)
}

fn found_by(c: &Connection, by: For<'_>, sought: &Sought) -> Result<Option<FamilyRecord>, StoreError> {
    // A snapshot may be called as a template is, with a tag of its own.
    let named = named(c, by, sought)?.map(|record| record.id);
    let by_tag = named.clone().filter(|_| sought.reference.tag.is_some());
    match by_tag {
        Some(id) => family(c, &id),
        None => match family_found(c, by, sought)? {
            Some(found) => Ok(Some(found.family)),
            None => named.map_or(Ok(None), |id| family(c, &id)),
        },
    }
}

pub(super) fn lookup(c: &Connection, by: For<'_>, sought: &Sought) -> Result<Lookup, StoreError> {
    let found = |record: TemplateRecord| Ok(Lookup::Found(Box::new(record)));
    if let Some(record) = named(c, by, sought)? {
        return found(record);
    }
    let Some(FamilyFound { family, stood_for }) = family_found(c, by, sought)? else { return Ok(Lookup::Absent) };
    let reference = &sought.reference;
    let meant = stood_for.filter(|_| reference.tag.is_none());
    let tag = meant.as_ref().unwrap_or(reference).tag();
    let versions = versions(c, OF_TEMPLATE, [&family.id])?;
    // `<id>:default` is how unnamed snapshots are shown; by its bare id every snapshot is found.
    let is_it = |record: &&TemplateRecord| {
        record.tags().any(|known| known == tag) || (record.snapshot_of.is_some() && reference.other_tag().is_none())
    };
    if let Some(record) = versions.iter().find(is_it) {
        return found(record.clone());
    }
    let mut tags: Vec<String> = versions.iter().flat_map(TemplateRecord::tags).map(str::to_owned).collect();
    tags.sort();
    Ok(Lookup::NoTag { template: reference.name.to_string(), tag: tag.to_owned(), tags })
}

fn named(c: &Connection, by: For<'_>, sought: &Sought) -> Result<Option<TemplateRecord>, StoreError> {
    for team in teams(by, sought) {
        let found = versions(c, NAMED, params![sought.reference.clone().full(), team])?.into_iter().next();
        let Some(record) = found else { continue };
        if family(c, &record.id)?.is_some_and(|family| is_there(by, &family)) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// The versions that `which` selects, each with what it shares with others of its template and with its names.
pub(super) fn versions(c: &Connection, which: &str, params: impl Params) -> Result<Vec<TemplateRecord>, StoreError> {
    let mut statement = c.prepare_cached(&versions_query(which)).map_err(sqlite("prepare a read"))?;
    let columns = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let rows = statement.query_map(params, columns).map_err(sqlite("read versions"))?;
    rows.map(|row| {
        let (version, family, names): (String, String, String) = row.map_err(sqlite("read a version"))?;
        let (version, family): (TemplateRecord, FamilyRecord) =
            (from_json("versions", &version)?, from_json("templates", &family)?);
        Ok(TemplateRecord { names: from_json("names", &names)?, ..family.share(version) })
    })
    .collect()
}

fn versions_query(which: &str) -> String {
    format!(
        "SELECT v.body, t.body, (SELECT json_group_array(name ORDER BY name) FROM names WHERE build_id = v.build_id)
         FROM versions v JOIN templates t ON t.id = v.template_id {which}"
    )
}

pub(super) fn family(c: &Connection, id: &TemplateId) -> Result<Option<FamilyRecord>, StoreError> {
    one(c, "templates", FAMILY, id.as_str())
}

fn snapshots_of_team(c: &Connection, team: &TeamId) -> Result<u32, StoreError> {
    let count = "SELECT count(*) FROM templates WHERE team = ?1 AND json_extract(body, '$.snapshot_of') IS NOT NULL";
    c.query_row(count, params![team], |row| row.get(0)).map_err(sqlite("count snapshots"))
}

/// Whether this build became a version that is there.
pub(super) fn is_version(c: &Connection, build_id: &BuildId) -> Result<bool, StoreError> {
    let found = c.query_row("SELECT 1 FROM versions WHERE build_id = ?1", params![build_id], |_| Ok(())).optional();
    Ok(found.map_err(sqlite("read a version"))?.is_some())
}

/// The id of a team's template with this name.
pub(super) fn id_of_name(c: &Connection, team: &TeamId, name: &TemplateName) -> Result<Option<TemplateId>, StoreError> {
    let found = c.query_row(ID_OF_NAME, params![name, team], |row| row.get(0)).optional();
    found.map_err(sqlite("read a template"))
}

pub(super) fn put_family(c: &Connection, family: &FamilyRecord) -> Result<(), StoreError> {
    let body = to_json("templates", family)?;
    let put = "INSERT INTO templates (id, team, name, body) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (id) DO UPDATE SET team = excluded.team, name = excluded.name, body = excluded.body";
    c.execute(put, params![family.id, family.owner, family.name, body]).map_err(sqlite("put a template"))?;
    Ok(())
}

pub(super) fn put_version(c: &Connection, record: &TemplateRecord) -> Result<(), StoreError> {
    let body = to_json("versions", record)?;
    let put = "INSERT INTO versions (build_id, template_id, body) VALUES (?1, ?2, ?3)
               ON CONFLICT (build_id) DO UPDATE SET template_id = excluded.template_id, body = excluded.body";
    c.execute(put, params![record.build_id, record.id, body]).map_err(sqlite("put a version"))?;
    Ok(())
}

/// Has names of a team lead to one of its versions.
pub(super) fn give(
    c: &Connection,
    (team, build_id): (&TeamId, &BuildId),
    names: &[Reference],
    at: Timestamp,
) -> Result<(), StoreError> {
    let give = "INSERT INTO names (name, build_id, assigned_at, team) VALUES (?1, ?2, ?3, ?4)
                ON CONFLICT (team, name) DO UPDATE SET build_id = excluded.build_id, assigned_at = excluded.assigned_at";
    for name in names {
        c.execute(give, params![name, build_id, at.to_string(), team]).map_err(sqlite("put a name"))?;
    }
    Ok(())
}

/// Inserts or replaces a version, with its template where that is new, and gives it its names, taking them from whoever had them. Gives
/// what is on record: a template of that name has an id already.
pub(super) fn put_template(tx: &Transaction<'_>, record: &TemplateRecord) -> Result<TemplateRecord, StoreError> {
    let mut record = record.clone();
    if let Some(name) = record.family_name()
        && let Some(id) = id_of_name(tx, &record.owner, &name)?
    {
        record.id = id;
    }
    let family = match family(tx, &record.id)? {
        Some(family) => FamilyRecord { updated_at: record.updated_at, ..family },
        None => FamilyRecord::of(&record),
    };
    put_family(tx, &family)?;
    put_version(tx, &record)?;
    tx.execute("DELETE FROM names WHERE build_id = ?1", params![record.build_id]).map_err(sqlite("clear names"))?;
    give(tx, (&family.owner, &record.build_id), &record.names, record.updated_at)?;
    if record.snapshot_of.is_none() {
        drop_untagged(tx, &record.id)?;
    }
    Ok(family.share(record))
}

/// Removes the versions of a template to which no tag leads any more. A snapshot may have no name and is none of them.
fn drop_untagged(tx: &Transaction<'_>, id: &TemplateId) -> Result<(), StoreError> {
    if family(tx, id)?.is_none_or(|family| family.snapshot_of.is_some()) {
        return Ok(());
    }
    let untagged = "DELETE FROM versions WHERE template_id = ?1
                    AND NOT EXISTS (SELECT 1 FROM names WHERE names.build_id = versions.build_id)";
    tx.execute(untagged, params![id]).map_err(sqlite("delete versions"))?;
    Ok(())
}

/// Removes templates that have neither a version nor a build: nothing is known of them but that somebody asked for one once.
pub(super) fn drop_bare(tx: &Transaction<'_>) -> Result<(), StoreError> {
    let bare = "id NOT IN (SELECT template_id FROM versions)
                AND id NOT IN (SELECT json_extract(body, '$.template_id') FROM builds)";
    for (table, column) in [("former_ids", "template_id"), ("templates", "id")] {
        let bare = format!("DELETE FROM {table} WHERE {column} IN (SELECT id FROM templates WHERE {bare})");
        tx.execute(&bare, []).map_err(sqlite("delete bare templates"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::goes_through_no_table;

    #[tokio::test]
    async fn templates_and_snapshots_are_found_without_the_others() {
        let lookups = [versions_query(NAMED), versions_query(OF_TEMPLATE), ID_OF_NAME.to_owned(), FORMER_ID.to_owned()];
        goes_through_no_table(lookups).await;
    }
}
