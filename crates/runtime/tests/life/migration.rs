//! A state directory of the time when each tagged build was a template with an id of its own, under this server.

use firkin_runtime::{build::Source, sandbox::CreateSandbox};
use rusqlite::Connection;

use crate::{
    bench::{Host, base},
    building::{built, own_builds, own_image},
};

/// Makes of a database what the first version of the schema would have had in it: templates have the ids of their builds.
const BACK_TO_THE_FIRST_VERSION: &str = "
    BEGIN;
    CREATE TABLE records AS SELECT build_id AS id, json_set(body, '$.id', build_id) AS body FROM versions;
    CREATE TABLE named AS SELECT name, build_id AS template_id FROM names;
    UPDATE sandboxes SET body = json_set(body, '$.template_id',
        (SELECT id FROM records
         WHERE json_extract(records.body, '$.budget.memory_mib') = json_extract(sandboxes.body, '$.budget.memory_mib')));
    UPDATE builds SET body = json_set(body, '$.template_id', id);
    DROP TABLE names;
    DROP TABLE former_ids;
    DROP TABLE versions;
    DROP TABLE templates;
    CREATE TABLE templates (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE names (name TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates (id)) WITHOUT ROWID;
    INSERT INTO templates SELECT id, body FROM records;
    INSERT INTO names SELECT name, template_id FROM named;
    CREATE TABLE digests AS SELECT digest FROM api_keys;
    DROP TABLE api_keys;
    DROP TABLE teams;
    CREATE TABLE api_keys (digest BLOB PRIMARY KEY) WITHOUT ROWID;
    INSERT INTO api_keys SELECT digest FROM digests;
    DROP TABLE digests;
    DROP TABLE named;
    DROP TABLE records;
    PRAGMA user_version = 1;
    COMMIT;";

#[test]
fn a_state_directory_of_the_first_version_goes_on_with_one_template_for_each_name() {
    let host = Host::new();
    let (default, tagged, sandboxes) = host.serve(async |server| {
        let default = built(server, "app", own_image(), 256).await;
        let tagged = built(server, "app:v1", Source::Template("base".into()), 1024).await;
        let mut sandboxes = Vec::new();
        for (template, word) in [("app", "default"), ("app:v1", "tagged")] {
            let id = server.create(CreateSandbox { template: template.into(), ..base() }).await.unwrap().id;
            host.remember(&id, word);
            server.pause(&id).await.unwrap();
            sandboxes.push((id, word));
        }
        (default, tagged, sandboxes)
    });
    let database = Connection::open(host.state_dir().join("firkin.db")).unwrap();
    database.execute_batch(BACK_TO_THE_FIRST_VERSION).unwrap();
    database.close().unwrap();
    host.serve(async |server| {
        let app: Vec<_> = server.templates().await.unwrap().into_iter().filter(|t| t.name.as_deref() == Some("app")).collect();
        let [app] = &app[..] else { panic!("one template: {app:?}") };
        assert_eq!((&app.id, app.aliases.as_slice()), (&default.build_id, ["app".to_owned(), "app:v1".to_owned()].as_slice()));
        // Both ids of before, and the new forms.
        let memory = async |reference: &str| {
            let id = server.create(CreateSandbox { template: reference.to_owned(), ..base() }).await.unwrap();
            server.kill(&id.id).await.unwrap();
            assert_eq!(id.template_id, app.id, "{reference}");
            id.budget.memory_mib
        };
        for (reference, expected) in [
            (default.build_id.as_str(), 256),
            ("app", 256),
            (tagged.build_id.as_str(), 1024),
            ("app:v1", 1024),
            (format!("{}:v1", default.build_id).as_str(), 1024),
        ] {
            assert_eq!(memory(reference).await, expected, "{reference}");
        }
        for (template, place) in [(&default.build_id, &default), (&tagged.build_id, &tagged)] {
            let build = server.build(template, &place.build_id).await.unwrap();
            assert_eq!(build.template_id, app.id, "the builds of both ids are found");
        }
        for (id, word) in &sandboxes {
            assert_eq!(server.sandbox(id).unwrap().template_id, app.id);
            server.resume(id, base().timeout).await.unwrap();
            assert_eq!(host.memory(id).word, *word);
        }
        // What it was is one tag now.
        server.delete_template(&tagged.build_id).await.unwrap();
        assert!(server.create(CreateSandbox { template: "app:v1".into(), ..base() }).await.is_err());
        assert!(server.delete_template("app").await.is_err(), "its sandboxes hold it");
        for (id, _) in &sandboxes {
            server.kill(id).await.unwrap();
        }
        server.delete_template("app").await.unwrap();
        assert!(own_builds(server).await.is_empty());
    });
}
