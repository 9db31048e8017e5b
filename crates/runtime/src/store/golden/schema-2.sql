PRAGMA foreign_keys = OFF;
BEGIN TRANSACTION;
CREATE TABLE api_keys (digest BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO "api_keys" VALUES(X'abababababababababababababababababababababababababababababababab');
CREATE TABLE build_layers (key TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "build_layers" VALUES('2528a50af4b2a0500528815f04ff5a980a8b34c3b4f91a6687ebff36c9f8f52b','{"key":"2528a50af4b2a0500528815f04ff5a980a8b34c3b4f91a6687ebff36c9f8f52b","artifact":"mnvtmeyca3jr22tam1ly","context":{"user":"user","workdir":"/home/user","env":{"FROM_IMAGE":"yes"}},"used_at":"2026-11-29T18:39:52.858509552Z"}');
CREATE TABLE build_logs (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "build_logs" VALUES('ed3c3dd9-55d9-425e-9e3b-32f08ade7216','[]');
CREATE TABLE builds (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "builds" VALUES('ed3c3dd9-55d9-425e-9e3b-32f08ade7216','{"id":"ed3c3dd9-55d9-425e-9e3b-32f08ade7216","template_id":"2iymozzr3wgmo2oh4nfw","name":"base","tags":["default"],"cpus":1,"memory_mib":512,"disk_mib":10240,"state":"ready","reason":null,"created_at":"2026-11-29T18:35:21.709219937Z","updated_at":"2026-11-29T18:35:22.722585859Z","finished_at":"2026-11-29T18:35:22.722585859Z"}');
CREATE TABLE former_ids (
        id TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates (id), name TEXT
    ) WITHOUT ROWID;
CREATE TABLE names (
        name TEXT PRIMARY KEY, build_id TEXT NOT NULL REFERENCES versions (build_id), assigned_at TEXT NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "names" VALUES('base:default','ed3c3dd9-55d9-425e-9e3b-32f08ade7216','2026-11-29T18:35:22.722508053Z');
CREATE TABLE sandboxes (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "sandboxes" VALUES('i2e250bxl321l6o37y7pm','{"id":"i2e250bxl321l6o37y7pm","spec":{"template":"base","timeout":{"secs":3000,"nanos":0},"on_timeout":"kill","auto_resume":false,"env":{},"metadata":{},"internet":"allowed","dns_servers":null,"ingress":{"private":false,"mask_host":null,"https_ports":[]},"secure":true},"template_id":"2iymozzr3wgmo2oh4nfw","alias":"base","budget":{"cpus":1,"memory_mib":512,"disk_mib":10240},"started_at":"2026-11-29T18:52:50.356860258Z","end_at":"2026-11-29T19:42:50.356860258Z","access_token":"0000000000000000000000000000000000000000000000000000000000000000","traffic_token":null,"epoch":2,"forked_from":null,"defaults":{},"inherited":["z7qt2xxb9pi9p5kgafhq"],"phase":{"phase":"running","memory_base":"q1bsl970tz3qk14l2031","layers":["z7qt2xxb9pi9p5kgafhq"],"overlay":"x5ut6qgweb7zqmbfzh8j","slot":393,"instance":"wi9exn0lnb3fe83h46dy2","nonce":"ZasCacON1luvWqwqb00InM7oskAMCVvC8+uvo3yJRHw="}}');
CREATE TABLE templates (id TEXT PRIMARY KEY, name TEXT UNIQUE, body TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "templates" VALUES('2iymozzr3wgmo2oh4nfw','base','{"id":"2iymozzr3wgmo2oh4nfw","name":"base","public":false,"description":null,"created_at":"2026-11-29T18:35:21.709219937Z","updated_at":"2026-11-29T18:35:22.722508053Z","spawn_count":236,"last_spawned_at":"2026-11-29T18:53:40.832083529Z","snapshot_of":null}');
CREATE TABLE versions (
        build_id TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates (id), body TEXT NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "versions" VALUES('ed3c3dd9-55d9-425e-9e3b-32f08ade7216','2iymozzr3wgmo2oh4nfw','{"id":"2iymozzr3wgmo2oh4nfw","build_id":"ed3c3dd9-55d9-425e-9e3b-32f08ade7216","artifact":"q1bsl970tz3qk14l2031","budget":{"cpus":1,"memory_mib":512,"disk_mib":10240},"created_at":"2026-11-29T18:35:21.709219937Z","updated_at":"2026-11-29T18:35:22.722508053Z","spawn_count":0,"last_spawned_at":null,"description":null,"snapshot_of":null,"made_from":null,"recipe":"3e6d41c54a8ed828a43787bc7565298d08dde39bc6d2a310ebb8e276bbb923d7","warm_up":"python3 -c ''import json, sys'' && true | cat && echo ready","setup":{"public":false,"defaults":{},"start":null,"ready":"python3 -c ''import json, sys'' && true | cat && echo ready"},"names":["base:default"]}');
CREATE INDEX versions_of_template ON versions (template_id);
CREATE INDEX names_of_version ON names (build_id);
CREATE INDEX former_ids_of_template ON former_ids (template_id);
CREATE INDEX builds_of_template ON builds (json_extract(body, '$.template_id'));
CREATE INDEX versions_of_sandbox ON versions (json_extract(body, '$.snapshot_of'), json_extract(body, '$.artifact'));
CREATE INDEX versions_of_artifact ON versions (json_extract(body, '$.artifact'), json_extract(body, '$.snapshot_of'));
INSERT INTO templates VALUES('snapsnapsnapsnapsnap',NULL,'{"id":"snapsnapsnapsnapsnap","name":null,"public":false,"description":null,"created_at":"2026-11-29T18:53:00Z","updated_at":"2026-11-29T18:53:00Z","spawn_count":0,"last_spawned_at":null,"snapshot_of":"i2e250bxl321l6o37y7pm"}');
INSERT INTO versions VALUES('c3dd9e3d-55d9-425e-9e3b-32f08ade7216','snapsnapsnapsnapsnap','{"id":"snapsnapsnapsnapsnap","build_id":"c3dd9e3d-55d9-425e-9e3b-32f08ade7216","artifact":"aaaa970tz3qk14l20311","budget":{"cpus":1,"memory_mib":512,"disk_mib":10240},"created_at":"2026-11-29T18:53:00Z","updated_at":"2026-11-29T18:53:00Z","spawn_count":0,"last_spawned_at":null,"snapshot_of":"i2e250bxl321l6o37y7pm","made_from":"2iymozzr3wgmo2oh4nfw","recipe":null,"names":["mine:v1"]}');
INSERT INTO names VALUES('mine:v1','c3dd9e3d-55d9-425e-9e3b-32f08ade7216','2026-11-29T18:53:00Z');
INSERT INTO former_ids VALUES('onceuponatime','2iymozzr3wgmo2oh4nfw','base:default');
PRAGMA user_version = 2;
COMMIT;
