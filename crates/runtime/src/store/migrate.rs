//! From the first version of the schema, in which each tagged build of a name was a template with an id of its own, to one template
//! for each name, and from there to that with teams. It is one transaction: a server that is killed in it begins again.
//!
//! Whatever bore an id that is none any more is told the new one: sandboxes, snapshots, builds. Clients keep the old one: it goes on
//! to stand for the tag that it stood for. What had lost all of its names while another build has them is no longer reachable by
//! anything but its sandboxes, and those hold what they need themselves.

use std::collections::BTreeMap;

use rusqlite::Transaction;

use super::{
    SandboxRecord, TemplateRecord, bodies,
    database::{Tx, params, refused},
    of_sqlite, teams_came,
    templates::{FamilyRecord, TABLES, give, put_family, put_version},
    to_json,
};
use crate::{
    ground::{
        ids::TemplateId,
        reference::{Reference, Tag, TemplateName},
    },
    store::{BuildRecord, StoreError},
};

/// What is to be on record.
#[derive(Debug, Default)]
struct Joined {
    families: BTreeMap<TemplateId, FamilyRecord>,
    versions: Vec<TemplateRecord>,
    /// From each id that is none any more to the one that it has become, and the name that it stood for.
    former: BTreeMap<TemplateId, (TemplateId, Option<Reference>)>,
    /// The template of each name.
    names: BTreeMap<TemplateName, TemplateId>,
}

pub(super) fn from_1(connection: &Transaction<'_>) -> Result<(), StoreError> {
    let tx = Tx::of(&**connection);
    let mut builds: Vec<BuildRecord> = bodies(tx, "builds", "SELECT body FROM builds ORDER BY id", params![])?;
    let sandboxes: Vec<SandboxRecord> = bodies(tx, "sandboxes", "SELECT body FROM sandboxes ORDER BY id", params![])?;
    let joined = Joined::of(records(tx)?, &mut builds);
    // Not before the names, which refer to them.
    connection.execute_batch("DROP TABLE names; DROP TABLE templates;").map_err(of_sqlite("drop the old tables"))?;
    connection.execute_batch(TABLES).map_err(of_sqlite("create the new tables"))?;
    for family in joined.families.values() {
        put_family(tx, family)?;
    }
    for version in &joined.versions {
        put_version(tx, version)?;
        give(tx, (&version.owner, &version.build_id), &version.names, version.updated_at)?;
    }
    for (id, (template, name)) in &joined.former {
        tx.execute("INSERT INTO former_ids (id, template_id, name) VALUES (?1, ?2, ?3)", params![id, template, name])
            .map_err(refused("put a former id"))?;
    }
    for build in &builds {
        let body = to_json("builds", build)?;
        tx.execute("UPDATE builds SET body = ?2 WHERE id = ?1", params![build.id, body]).map_err(refused("put a build"))?;
    }
    for mut sandbox in sandboxes {
        if let Some((template, _)) = joined.former.get(&sandbox.template_id) {
            sandbox.template_id.clone_from(template);
            let body = to_json("sandboxes", &sandbox)?;
            tx.execute("UPDATE sandboxes SET body = ?2 WHERE id = ?1", params![sandbox.id.as_str(), body])
                .map_err(refused("put a sandbox"))?;
        }
    }
    teams_came::with_keys(connection)
}

fn records(c: Tx<'_>) -> Result<Vec<TemplateRecord>, StoreError> {
    let mut names: BTreeMap<TemplateId, Vec<Reference>> = BTreeMap::new();
    let of = "SELECT template_id, name FROM names ORDER BY name";
    let of: Vec<(TemplateId, Reference)> =
        c.query(of, params![], |row| Ok((row.get(0)?, row.get(1)?))).map_err(refused("read names"))?;
    for (id, name) in of {
        names.entry(id).or_default().push(name);
    }
    let mut templates: Vec<TemplateRecord> = bodies(c, "templates", "SELECT body FROM templates ORDER BY id", params![])?;
    for record in &mut templates {
        record.names = names.remove(&record.id).unwrap_or_default();
    }
    Ok(templates)
}

impl Joined {
    /// Also tells builds which template they are of now.
    fn of(records: Vec<TemplateRecord>, builds: &mut [BuildRecord]) -> Self {
        let mut joined = Self::default();
        let (snapshots, templates): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.snapshot_of.is_some());
        let mut groups: BTreeMap<TemplateName, Vec<TemplateRecord>> = BTreeMap::new();
        let mut nameless = Vec::new();
        for record in templates {
            match record.base_name().cloned() {
                Some(base) => groups.entry(base).or_default().push(record),
                None => nameless.push(record),
            }
        }
        for (name, group) in groups {
            joined.join(name, group);
        }
        for record in nameless {
            let build = builds.iter().find(|build| build.id == record.build_id);
            match build.and_then(|build| joined.named(build)).cloned() {
                Some(template) => drop(joined.former.insert(record.id, (template, None))),
                None => {
                    let name = Reference { name: (&record.id).into(), tag: Some(Tag::default()) };
                    joined.keep(TemplateRecord { names: vec![name], ..record });
                }
            }
        }
        for snapshot in snapshots {
            let made_from = snapshot.made_from.clone().map(|id| joined.former.get(&id).map_or(id, |(now, _)| now.clone()));
            joined.keep(TemplateRecord { made_from, ..snapshot });
        }
        for build in builds {
            joined.adopt(build);
        }
        joined
    }

    /// Versions of one name become one template, with the id of that which the bare name means.
    fn join(&mut self, name: TemplateName, group: Vec<TemplateRecord>) {
        let default = Reference { name: name.clone(), tag: Some(Tag::default()) };
        let first = group.iter().max_by_key(|record| (record.names.contains(&default), record.updated_at));
        let Some(first) = first.cloned() else { return };
        let family = FamilyRecord {
            created_at: group.iter().map(|record| record.created_at).min().unwrap_or(first.created_at),
            updated_at: group.iter().map(|record| record.updated_at).max().unwrap_or(first.updated_at),
            spawn_count: group.iter().map(|record| record.spawn_count).sum(),
            last_spawned_at: group.iter().filter_map(|record| record.last_spawned_at).max(),
            ..FamilyRecord::of(&first)
        };
        for record in group {
            if record.id != first.id {
                self.former.insert(record.id.clone(), (first.id.clone(), record.names.first().cloned()));
            }
            self.versions.push(TemplateRecord { id: first.id.clone(), ..record });
        }
        self.names.insert(name, first.id.clone());
        self.families.insert(first.id, family);
    }

    /// The template of a build's name.
    fn named(&self, build: &BuildRecord) -> Option<&TemplateId> {
        self.names.get(build.name.as_ref()?)
    }

    /// A template of one version.
    fn keep(&mut self, record: TemplateRecord) {
        self.families.insert(record.id.clone(), FamilyRecord::of(&record));
        self.versions.push(record);
    }

    /// A build belongs to the template of its name; one of which nothing has come yet, to one without versions.
    fn adopt(&mut self, build: &mut BuildRecord) {
        if self.families.contains_key(&build.template_id) {
            return;
        }
        let known = self.former.get(&build.template_id).map(|(template, _)| template);
        let template = known.or_else(|| self.named(build)).cloned();
        let Some(template) = template else {
            let id = build.template_id.clone();
            if let Some(name) = build.name.clone() {
                self.names.insert(name, id.clone());
            }
            self.families
                .insert(id.clone(), FamilyRecord::unbuilt((id, build.owner.clone()), build.name.clone(), build.created_at));
            return;
        };
        let before = std::mem::replace(&mut build.template_id, template.clone());
        self.former.entry(before).or_insert((template, None));
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rusqlite::{Connection, params};
    use serde_json::{Value, json};

    use super::*;
    use crate::ground::{reference::Sought, team::Scope};
    use crate::store::{Store, templates::Lookup};

    fn template(id: &str, build: &str, minute: i64, fields: &Value) -> String {
        let at = Timestamp::from_second(60 * minute).unwrap();
        let mut body = json!({
            "id": id, "build_id": build, "artifact": format!("artifact-{id}"),
            "budget": {"cpus": 1, "memory_mib": 512, "disk_mib": 8},
            "created_at": at, "updated_at": at, "spawn_count": 1, "last_spawned_at": at,
            "snapshot_of": null, "recipe": null, "names": [],
        });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body.to_string()
    }

    fn build(id: &str, template: &str, name: &str, tag: &str) -> String {
        let at = Timestamp::UNIX_EPOCH;
        json!({
            "id": id, "template_id": template, "name": name, "tags": [tag], "cpus": 1, "memory_mib": 512, "disk_mib": null,
            "state": "ready", "reason": null, "created_at": at, "updated_at": at, "finished_at": at,
        })
        .to_string()
    }

    /// A database as the first version wrote it.
    fn first_version(path: &std::path::Path) {
        let c = Connection::open(path).unwrap();
        c.execute_batch(
            "CREATE TABLE sandboxes (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE templates (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE names (name TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates (id)) WITHOUT ROWID;
             CREATE TABLE api_keys (digest BLOB PRIMARY KEY) WITHOUT ROWID;
             PRAGMA user_version = 1;",
        )
        .unwrap();
        super::super::builds::create_tables(&c).unwrap();
        let snapshot = json!({"snapshot_of": "isandbox", "made_from": "two"});
        for (id, body) in [
            // Its default was built last; before, `prod` and `old`, which share a build.
            ("one", template("one", "b1", 9, &json!({}))),
            ("two", template("two", "b2", 5, &json!({}))),
            // Lost its names to `one`.
            ("gone", template("gone", "b0", 1, &json!({}))),
            // Has only a tag.
            ("tagged", template("tagged", "b3", 2, &json!({}))),
            // Nobody knows what it was called.
            ("lone", template("lone", "b9", 3, &json!({}))),
            ("snap", template("snap", "b4", 6, &snapshot)),
        ] {
            c.execute("INSERT INTO templates (id, body) VALUES (?1, ?2)", params![id, body]).unwrap();
        }
        for (name, id) in
            [("app:default", "one"), ("app:prod", "two"), ("app:old", "two"), ("other:v1", "tagged"), ("mine:v1", "snap")]
        {
            c.execute("INSERT INTO names (name, template_id) VALUES (?1, ?2)", params![name, id]).unwrap();
        }
        for (id, body) in [
            ("b0", build("b0", "gone", "app", "default")),
            ("b2", build("b2", "two", "app", "prod")),
            ("b7", build("b7", "never", "unbuilt", "default")),
            ("b8", build("b8", "forgotten", "app", "default")),
        ] {
            c.execute("INSERT INTO builds (id, body) VALUES (?1, ?2)", params![id, body]).unwrap();
        }
    }

    #[tokio::test]
    async fn records_of_one_name_become_one_template() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firkin.db");
        first_version(&path);
        for _ in 0..2 {
            // The second time there is nothing to do.
            let store = Store::open(&path).await.unwrap();
            let at =
                async |reference: &str| match store.template(Scope::Host, reference.parse::<Sought>().unwrap()).await.unwrap() {
                    Lookup::Found(found) => format!("{} {}", found.id, found.build_id),
                    Lookup::NoTag { tag, tags, .. } => format!("no {tag} but {tags:?}"),
                    Lookup::Absent => "absent".to_owned(),
                };
            for (reference, expected) in [
                ("app", "one b1"),
                ("one", "one b1"),
                ("firkin/app:prod", "one b2"),
                ("one:old", "one b2"),
                ("two", "one b2"),
                ("two:default", "one b1"),
                ("gone", "one b1"),
                ("other", r#"no default but ["v1"]"#),
                ("tagged:v1", "tagged b3"),
                ("lone", "lone b9"),
                ("mine:v1", "snap b4"),
                ("snap", "snap b4"),
                ("unbuilt", "no default but []"),
                ("never", "no default but []"),
                ("forgotten", "one b1"),
                ("nothing", "absent"),
            ] {
                assert_eq!(at(reference).await, expected, "{reference}");
            }
            let app = store.family(Scope::Host, "two".parse::<Sought>().unwrap()).await.unwrap().unwrap();
            assert_eq!((app.name, app.spawn_count), (Some("app".parse().unwrap()), 2));
            assert_eq!((app.created_at.as_second(), app.updated_at.as_second()), (300, 540));
            let names: Vec<_> = store
                .whole_templates(Scope::Host)
                .await
                .unwrap()
                .into_iter()
                .map(|whole| (whole.family.id, whole.family.name))
                .collect();
            let named = |id: &str, name: &str| (id.parse().unwrap(), Some(name.parse().unwrap()));
            let unnamed = |id: &str| (id.parse().unwrap(), None);
            assert_eq!(
                names,
                [unnamed("lone"), named("never", "unbuilt"), named("one", "app"), unnamed("snap"), named("tagged", "other")]
            );
            let builds: Vec<_> =
                store.builds(Scope::Host).await.unwrap().into_iter().map(|build| build.template_id.to_string()).collect();
            assert_eq!(builds, ["one", "one", "never", "one"]);
            let snapshot = store.template(Scope::Host, "mine:v1".parse::<Sought>().unwrap()).await.unwrap().found().unwrap();
            assert_eq!(snapshot.made_from.as_ref().map(TemplateId::as_str), Some("one"));
            store.close().await.unwrap();
        }
    }
}
