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

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    SandboxRecord, Store, TemplateRecord, bodies,
    database::{Row, Tx, Value, params, refused},
    from_json, one, to_json,
};
use crate::{
    ground::{
        ids::{BuildId, TemplateId},
        reference::{NoTemplate, Reference, STANDARD, Sought, TemplateName},
        team::{FIRST, Scope, TeamId},
    },
    store::{StoreError, spec::SandboxId},
};

/// Sandboxes of a template that are to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spawns {
    pub(crate) count: u64,
    /// When the last of them was made.
    pub(crate) last_at: Timestamp,
}

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

/// The versions of a template.
pub(super) const OF_TEMPLATE: &str = "WHERE v.template_id = ?1 ORDER BY v.build_id";

/// What all versions of a template share.
const FAMILY: &str = "SELECT body FROM templates WHERE id = ?1";

/// The template of an id, for whom it is there.
const FAMILY_OF_ID: &str = "SELECT t.body FROM templates t WHERE t.id = ?1";

/// The template of a team's name, for whom it is there.
const FAMILY_OF_NAME: &str = "SELECT t.body FROM templates t WHERE t.name = ?1 AND t.team = ?2";

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
        self.read(move |tx| snapshots_of_team(tx, &team)).await
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
                .first("SELECT template_id FROM versions WHERE build_id = ?1", params![build_id], |row| row.get(0))
                .map_err(refused("read a version"))?;
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
                let id = tx.first(query, params![name, team], |row| row.get(0)).map_err(refused("read a name"))?;
                let Some(id): Option<TemplateId> = id else { return Ok(Some(name.clone())) };
                of.push(id);
            }
            for (name, id) in names.iter().zip(of) {
                let remove = "DELETE FROM names WHERE name = ?1 AND team = ?2";
                tx.execute(remove, params![name, team]).map_err(refused("remove a name"))?;
                drop_untagged(tx, &id)?;
            }
            Ok(None)
        })
        .await
    }

    /// Counts more sandboxes of templates; of those that are gone, none.
    pub(crate) async fn count_spawns(&self, counts: HashMap<TemplateId, Spawns>) -> Result<(), StoreError> {
        self.run(move |tx| {
            for (id, Spawns { count, last_at }) in &counts {
                let Some(family) = family(tx, id)? else { continue };
                let spawn_count = family.spawn_count.saturating_add(*count);
                // Another server may have counted a later one.
                let last_spawned_at = family.last_spawned_at.max(Some(*last_at));
                put_family(tx, &FamilyRecord { spawn_count, last_spawned_at, ..family })?;
            }
            Ok(())
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
        let all = format!("SELECT body FROM {} ORDER BY id", self.parts().all_sandboxes);
        self.run(move |tx| {
            let sandboxes: Vec<SandboxRecord> = bodies(tx, "sandboxes", &all, params![])?;
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
                tx.execute(part, params![id]).map_err(refused("delete a template"))?;
            }
            Ok(of_it)
        })
        .await
    }

    /// Every version of every template of a scope, and every snapshot, with the names that lead to it now. Those of one template are
    /// together.
    pub(crate) async fn templates(&self, scope: Scope) -> Result<Vec<TemplateRecord>, StoreError> {
        let all = self.read(|tx| versions(tx, "ORDER BY v.template_id, v.build_id", params![])).await?;
        Ok(all.into_iter().filter(|record| scope.sees(&record.owner)).collect())
    }

    /// The version that a reference leads to, among what a scope owns.
    pub(crate) async fn template(&self, scope: Scope, sought: impl Into<Sought>) -> Result<Lookup, StoreError> {
        let sought = sought.into();
        self.read(move |tx| lookup(tx, (&scope, Use::Own), &sought)).await
    }

    /// The version that a reference leads to, among what a scope may start from: also what is public, and the host's standard templates.
    pub(crate) async fn usable_template(&self, scope: Scope, sought: impl Into<Sought>) -> Result<Lookup, StoreError> {
        let sought = sought.into();
        self.read(move |tx| lookup(tx, (&scope, Use::StartFrom), &sought)).await
    }

    /// What a scope may start from of a reference, whatever its tag, and whether or not anything was built.
    pub(crate) async fn usable_family(
        &self,
        scope: Scope,
        sought: impl Into<Sought>,
    ) -> Result<Option<FamilyRecord>, StoreError> {
        let sought = sought.into();
        self.read(move |tx| found_by(tx, (&scope, Use::StartFrom), &sought)).await
    }

    /// The template or snapshot of a reference that a scope owns, whatever its tag, and whether or not anything was built.
    pub(crate) async fn family(&self, scope: Scope, sought: impl Into<Sought>) -> Result<Option<FamilyRecord>, StoreError> {
        let sought = sought.into();
        self.read(move |tx| family_of(tx, &scope, &sought)).await
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

/// A query for a row `t` of templates that finds it only where it is there for who looks: for whom, and whether to start from it, are its next
/// two parameters. What another team has is passed over in the database, before anything of it is read, so that a refusal is the same
/// work for what there is as for what there is not.
fn there(query: &str, parameters: usize) -> String {
    let (team, starts) = (parameters + 1, parameters + 2);
    let standard = STANDARD.map(|name| format!("'{name}'")).join(", ");
    format!(
        "{query} AND (CAST(?{team} AS TEXT) IS NULL OR t.team = ?{team}
             OR (?{starts} AND (CAST(json_extract(t.body, '$.public') AS TEXT) IN ('1', 'true') OR (t.team = '{FIRST}' AND t.name IN ({standard})))))"
    )
}

/// The version of a team's name, for whom its template is there.
fn of_name() -> String {
    versions_query(&there("WHERE v.build_id = (SELECT build_id FROM names WHERE name = ?1 AND team = ?2)", 2))
}

/// What [`there`] asks for.
fn asking<'a>((scope, to): For<'a>) -> (Option<&'a TeamId>, bool) {
    let team = match scope {
        Scope::Host => None,
        Scope::Team(team) => Some(team),
    };
    (team, to == Use::StartFrom)
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
fn family_found(c: Tx<'_>, by: For<'_>, sought: &Sought) -> Result<Option<FamilyFound>, StoreError> {
    let base = sought.reference.name.as_str();
    let of_team = |family: &FamilyRecord| sought.team.as_ref().is_none_or(|team| *team == family.owner);
    if let Some(family) = family_of_id(c, by, base)?.filter(of_team) {
        return Ok(Some(FamilyFound { family, stood_for: None }));
    }
    let (scope, starts) = asking(by);
    for team in teams(by, sought) {
        let named = read_family(c, &there(FAMILY_OF_NAME, 2), params![sought.reference.name, team, scope, starts])?;
        if let Some(family) = named {
            return Ok(Some(FamilyFound { family, stood_for: None }));
        }
    }
    let former = c.first(FORMER_ID, params![base], |row| Ok((row.get(0)?, row.get(1)?)));
    let Some((id, stood_for)): Option<(String, _)> = former.map_err(refused("read a former id"))? else { return Ok(None) };
    let family = family_of_id(c, by, &id)?.filter(of_team);
    Ok(family.map(|family| FamilyFound { family, stood_for }))
}

/// The template or snapshot of a reference that `scope` owns.
pub(super) fn family_of(c: Tx<'_>, scope: &Scope, sought: &Sought) -> Result<Option<FamilyRecord>, StoreError> {
    found_by(c, (scope, Use::Own), sought)
}

fn found_by(c: Tx<'_>, by: For<'_>, sought: &Sought) -> Result<Option<FamilyRecord>, StoreError> {
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

pub(super) fn lookup(c: Tx<'_>, by: For<'_>, sought: &Sought) -> Result<Lookup, StoreError> {
    let found = |record: TemplateRecord| Ok(Lookup::Found(Box::new(record)));
    if let Some(record) = named(c, by, sought)? {
        return found(record);
    }
    let Some(FamilyFound { family, stood_for }) = family_found(c, by, sought)? else { return Ok(Lookup::Absent) };
    let reference = &sought.reference;
    let meant = stood_for.filter(|_| reference.tag.is_none());
    let tag = meant.as_ref().unwrap_or(reference).tag();
    let versions = versions(c, OF_TEMPLATE, params![family.id])?;
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

fn named(c: Tx<'_>, by: For<'_>, sought: &Sought) -> Result<Option<TemplateRecord>, StoreError> {
    let ((scope, starts), name) = (asking(by), sought.reference.clone().full());
    for team in teams(by, sought) {
        let found = read_versions(c, &of_name(), params![name, team, scope, starts])?.into_iter().next();
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn family_of_id(c: Tx<'_>, by: For<'_>, id: &str) -> Result<Option<FamilyRecord>, StoreError> {
    let (scope, starts) = asking(by);
    read_family(c, &there(FAMILY_OF_ID, 1), params![id, scope, starts])
}

fn read_family(c: Tx<'_>, query: &str, params: &[Value]) -> Result<Option<FamilyRecord>, StoreError> {
    let body: Option<String> = c.first(query, params, |row| row.get(0)).map_err(refused("read a template"))?;
    body.map(|body| from_json("templates", &body)).transpose()
}

/// The versions that `which` selects, each with what it shares with others of its template and with its names.
pub(super) fn versions(c: Tx<'_>, which: &str, params: &[Value]) -> Result<Vec<TemplateRecord>, StoreError> {
    read_versions(c, &versions_query(which), params)
}

fn read_versions(c: Tx<'_>, query: &str, params: &[Value]) -> Result<Vec<TemplateRecord>, StoreError> {
    let columns = |row: &Row| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let rows: Vec<(String, String, String)> = c.query(query, params, columns).map_err(refused("read versions"))?;
    rows.into_iter()
        .map(|(version, family, names)| {
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

pub(super) fn family(c: Tx<'_>, id: &TemplateId) -> Result<Option<FamilyRecord>, StoreError> {
    one(c, "templates", FAMILY, id.as_str())
}

fn snapshots_of_team(c: Tx<'_>, team: &TeamId) -> Result<u32, StoreError> {
    let count = "SELECT count(*) FROM templates WHERE team = ?1 AND json_extract(body, '$.snapshot_of') IS NOT NULL";
    Ok(c.first(count, params![team], |row| row.get(0)).map_err(refused("count snapshots"))?.unwrap_or_default())
}

/// Whether this build became a version that is there.
pub(super) fn is_version(c: Tx<'_>, build_id: &BuildId) -> Result<bool, StoreError> {
    let found = c.first("SELECT 1 FROM versions WHERE build_id = ?1", params![build_id], |_| Ok(()));
    Ok(found.map_err(refused("read a version"))?.is_some())
}

/// The id of a team's template with this name.
pub(super) fn id_of_name(c: Tx<'_>, team: &TeamId, name: &TemplateName) -> Result<Option<TemplateId>, StoreError> {
    let found = c.first(ID_OF_NAME, params![name, team], |row| row.get(0));
    found.map_err(refused("read a template"))
}

pub(super) fn put_family(c: Tx<'_>, family: &FamilyRecord) -> Result<(), StoreError> {
    let body = to_json("templates", family)?;
    let put = "INSERT INTO templates (id, team, name, body) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (id) DO UPDATE SET team = excluded.team, name = excluded.name, body = excluded.body";
    c.execute(put, params![family.id, family.owner, family.name, body]).map_err(refused("put a template"))?;
    Ok(())
}

pub(super) fn put_version(c: Tx<'_>, record: &TemplateRecord) -> Result<(), StoreError> {
    let body = to_json("versions", record)?;
    let put = "INSERT INTO versions (build_id, template_id, body) VALUES (?1, ?2, ?3)
               ON CONFLICT (build_id) DO UPDATE SET template_id = excluded.template_id, body = excluded.body";
    c.execute(put, params![record.build_id, record.id, body]).map_err(refused("put a version"))?;
    Ok(())
}

/// Has names of a team lead to one of its versions.
pub(super) fn give(
    c: Tx<'_>,
    (team, build_id): (&TeamId, &BuildId),
    names: &[Reference],
    at: Timestamp,
) -> Result<(), StoreError> {
    let give = "INSERT INTO names (name, build_id, assigned_at, team) VALUES (?1, ?2, ?3, ?4)
                ON CONFLICT (team, name) DO UPDATE SET build_id = excluded.build_id, assigned_at = excluded.assigned_at";
    for name in names {
        c.execute(give, params![name, build_id, at.to_string(), team]).map_err(refused("put a name"))?;
    }
    Ok(())
}

/// Inserts or replaces a version, with its template where that is new, and gives it its names, taking them from whoever had them. Gives
/// what is on record: a template of that name has an id already.
pub(super) fn put_template(tx: Tx<'_>, record: &TemplateRecord) -> Result<TemplateRecord, StoreError> {
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
    tx.execute("DELETE FROM names WHERE build_id = ?1", params![record.build_id]).map_err(refused("clear names"))?;
    give(tx, (&family.owner, &record.build_id), &record.names, record.updated_at)?;
    if record.snapshot_of.is_none() {
        drop_untagged(tx, &record.id)?;
    }
    Ok(family.share(record))
}

/// Removes the versions of a template to which no tag leads any more. A snapshot may have no name and is none of them.
fn drop_untagged(tx: Tx<'_>, id: &TemplateId) -> Result<(), StoreError> {
    if family(tx, id)?.is_none_or(|family| family.snapshot_of.is_some()) {
        return Ok(());
    }
    let untagged = "DELETE FROM versions WHERE template_id = ?1
                    AND NOT EXISTS (SELECT 1 FROM names WHERE names.build_id = versions.build_id)";
    tx.execute(untagged, params![id]).map_err(refused("delete versions"))?;
    Ok(())
}

/// Removes templates that have neither a version nor a build: nothing is known of them but that somebody asked for one once.
pub(super) fn drop_bare(tx: Tx<'_>) -> Result<(), StoreError> {
    let bare = "id NOT IN (SELECT template_id FROM versions)
                AND id NOT IN (SELECT json_extract(body, '$.template_id') FROM builds)";
    for (table, column) in [("former_ids", "template_id"), ("templates", "id")] {
        let bare = format!("DELETE FROM {table} WHERE {column} IN (SELECT id FROM templates WHERE {bare})");
        tx.execute(&bare, params![]).map_err(refused("delete bare templates"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::goes_through_no_table;

    #[tokio::test]
    async fn templates_and_snapshots_are_found_without_the_others() {
        let lookups = [
            of_name(),
            versions_query(OF_TEMPLATE),
            there(FAMILY_OF_ID, 1),
            there(FAMILY_OF_NAME, 2),
            ID_OF_NAME.to_owned(),
            FORMER_ID.to_owned(),
        ];
        goes_through_no_table(lookups).await;
    }
}
