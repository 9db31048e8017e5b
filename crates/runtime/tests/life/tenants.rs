//! Two teams on one host: what one has is for the other as if it were not there, by whatever it is asked for.

use std::{collections::BTreeMap, time::Duration};

use firkin_runtime::{
    build::{BuildRequest, Source},
    capacity::TeamQuota,
    lineage::LineageNode,
    reference::NoTemplate,
    runtime::{DestroyVolumeError, NewKey, Runtime, TeamError},
    sandbox::{CreateError, CreateSandbox, Memory, MountsError, SandboxId, VolumeMount},
    secrets::SecretError,
    standard::BuildTemplate,
    store::KeyScope,
    tags::TagError,
    team::TeamId,
    template::TemplateUpdate,
    templates::DeleteError,
    volumes::VolumeError,
};

use crate::{
    bench::{Host, base},
    building::{built, ended, own_image, plan, request, start},
};

const MINUTE: Duration = Duration::from_secs(60);

/// Two teams, and what each sees of the host.
async fn two(server: &Runtime) -> (Runtime, Runtime) {
    for id in ["a", "b"] {
        server.add_team(id.parse().unwrap(), None, TeamQuota::default()).await.unwrap();
    }
    (server.within("a".parse().unwrap()), server.within("b".parse().unwrap()))
}

fn from(template: &str) -> CreateSandbox {
    CreateSandbox { template: template.to_owned(), ..base() }
}

/// What is told of something is what is told of nothing, but for what it was called.
fn like_nothing(told: impl std::fmt::Display, called: &str, nothing: impl std::fmt::Display, none: &str) {
    assert_eq!(told.to_string().replace(called, none), nothing.to_string());
}

fn ids(nodes: &[LineageNode]) -> Vec<String> {
    nodes.iter().flat_map(|node| std::iter::once(node.id.clone()).chain(ids(&node.children))).collect()
}

#[test]
fn sandboxes_of_another_team_are_not_there() {
    let host = Host::new();
    host.serve(async |server| {
        let (a, b) = two(server).await;
        let (own, none) = (a.create(base()).await.unwrap(), SandboxId::generate());
        assert_eq!(own.owner.as_str(), "a");
        let id = own.id;
        /// Asks for both in the same way, and holds the answers together.
        macro_rules! refused {
            ($($call:ident ( $($more:expr),* )),* $(,)?) => {$(
                let (told, nothing) = (b.$call(&id $(, $more)*).await.unwrap_err(), b.$call(&none $(, $more)*).await.unwrap_err());
                like_nothing(told, id.as_str(), nothing, none.as_str());
            )*};
        }
        refused!(
            connect(MINUTE),
            resume(MINUTE),
            pause(),
            fork(1, MINUTE),
            snapshot(None),
            rollback("x"),
            kill(),
            set_timeout(MINUTE),
            extend_timeout(MINUTE),
            stats(),
            samples(),
            dial(80),
        );
        like_nothing(b.sandbox(&id).unwrap_err(), id.as_str(), b.sandbox(&none).unwrap_err(), none.as_str());
        like_nothing(b.events(&id).unwrap_err(), id.as_str(), b.events(&none).unwrap_err(), none.as_str());
        like_nothing(b.ingress(&id).unwrap_err(), id.as_str(), b.ingress(&none).unwrap_err(), none.as_str());
        assert!(b.sandboxes().is_empty() && b.lineage().await.unwrap().is_empty());
        assert_eq!((a.sandboxes().len(), server.sandboxes().len()), (1, 1));
        // Neither does a paused one wake, nor does one that ended leave anything.
        a.pause(&id).await.unwrap();
        like_nothing(b.connect(&id, MINUTE).await.unwrap_err(), id.as_str(), b.connect(&none, MINUTE).await.unwrap_err(), none.as_str());
        a.kill(&id).await.unwrap();
        assert!(a.events(&id).is_ok() && b.events(&id).is_err());
        let long_ago = jiff::Timestamp::UNIX_EPOCH;
        let started = |team: &Runtime| team.activity(long_ago, jiff::Timestamp::MAX).iter().any(|minute| minute.starts > 0);
        assert!(started(&a) && !started(&b) && !started(server), "each team has its own numbers");
    });
}

#[test]
fn what_a_sandbox_leaves_is_of_its_team() {
    let host = Host::new();
    host.serve(async |server| {
        let (a, b) = two(server).await;
        let id = a.create(base()).await.unwrap().id;
        let fork = a.fork(&id, 1, MINUTE).await.unwrap().remove(0).unwrap();
        assert_eq!(fork.owner.as_str(), "a");
        let named = a.snapshot(&id, Some("a/mine:v1".into())).await.unwrap();
        let unnamed = a.snapshot_with(&id, None, Memory::Dropped).await.unwrap();
        assert_eq!(named.snapshot_id, "a/mine:v1");
        let bare = unnamed.snapshot_id.trim_end_matches(":default");
        for reference in ["a/mine:v1", "mine:v1", "firkin/mine:v1", &unnamed.snapshot_id, bare] {
            let refused = b.create(from(reference)).await.unwrap_err();
            assert!(
                matches!(&refused, CreateError::NoTemplate(NoTemplate::Absent(of)) if of == reference),
                "{reference}: {refused}"
            );
            assert!(
                matches!(b.delete_template(reference).await, Err(DeleteError::NotFound(NoTemplate::Absent(_)))),
                "{reference}"
            );
            assert_eq!(b.template(reference).await.unwrap(), None, "{reference}");
        }
        assert!(b.snapshots().await.unwrap().is_empty() && b.snapshot(&id, None).await.is_err());
        assert!(matches!(a.snapshot(&id, Some("b/mine".into())).await, Err(error) if error.to_string().contains("b/mine")));
        let again = a.create(from("mine:v1")).await.unwrap();
        assert_eq!((again.owner.as_str(), a.snapshots().await.unwrap().len()), ("a", 2));
        // The same name is another team's too, and leads to what is its own.
        let other = b.create(base()).await.unwrap().id;
        b.snapshot(&other, Some("mine:v1".into())).await.unwrap();
        assert_eq!(b.create(from("mine:v1")).await.unwrap().template_id, b.template("mine:v1").await.unwrap().unwrap().id);
        assert_ne!(a.template("mine:v1").await.unwrap().unwrap().id, b.template("mine:v1").await.unwrap().unwrap().id);
        let tree = ids(&b.lineage().await.unwrap());
        assert!(!tree.contains(&id.to_string()) && tree.contains(&other.to_string()), "{tree:?}");
    });
}

#[test]
fn templates_tags_and_builds_are_of_their_team() {
    let host = Host::new();
    host.serve(async |server| {
        let (a, b) = two(server).await;
        let place = built(&a, "app", own_image(), 256).await;
        assert_eq!(place.owner.as_str(), "a");
        a.assign_tags("app", vec!["v1".into()]).await.unwrap();
        let id = place.template_id.clone();
        for reference in ["app", "app:v1", "a/app", "a/app:v1", id.as_str(), &format!("{id}:v1")] {
            let refused = b.create(from(reference)).await.unwrap_err();
            assert!(matches!(&refused, CreateError::NoTemplate(NoTemplate::Absent(_))), "{reference}: {refused}");
            assert_eq!(b.template(reference).await.unwrap(), None, "{reference}");
            assert_eq!(b.usable_template(reference).await.unwrap(), None, "{reference}");
            let public = TemplateUpdate { public: Some(true), description: None };
            assert_eq!(b.update_template(reference, public).await.unwrap(), None, "{reference}");
            assert!(matches!(b.assign_tags(reference, vec!["x".into()]).await, Err(TagError::NoTemplate(_))), "{reference}");
            assert!(b.delete_template(reference).await.is_err() && b.template_builds(reference).await.unwrap().is_empty());
        }
        assert!(
            b.remove_tags("app", vec!["v1".into()]).await.is_err() && b.remove_tags("a/app", vec!["v1".into()]).await.is_err()
        );
        assert!(b.build(&id, &place.build_id).await.is_err() && b.build_log(&id, &place.build_id).await.is_err());
        assert!(b.builds().await.unwrap().is_empty() && b.templates().await.unwrap().is_empty());
        assert!(b.request_build(&BuildRequest { name: Some("a/app".into()), ..BuildRequest::default() }).await.is_err());
        // A name of one's own, which may even be another's id, leads to what is one's own.
        let own = built(&b, "app", own_image(), 256).await;
        assert_ne!(own.template_id, id);
        built(&b, &id, own_image(), 256).await;
        assert_eq!(b.template(&id).await.unwrap().unwrap().name.as_deref(), Some(id.as_str()));
        assert_eq!(a.template(&id).await.unwrap().unwrap().name.as_deref(), Some("app"));
        assert_eq!(a.template("app").await.unwrap().unwrap().tags.len(), 2);
        // Nor does a build stand on what is another's.
        let stands = Source::Template("a/app".into());
        let place = crate::building::request(&b, "on-it", 256).await;
        crate::building::start(&b, &place, crate::building::plan(stands, &[])).await;
        let failed = crate::building::ended(&b, &place).await.reason.unwrap();
        assert_eq!(failed.message, "template 'a/app' not found");
    });
}

#[test]
fn what_is_public_and_the_hosts_own_can_be_started_from_and_no_more() {
    let host = Host::new();
    host.serve(async |server| {
        let (a, b) = two(server).await;
        let base_id = server.template("base").await.unwrap().unwrap().id;
        for reference in ["base", "firkin/base", "base:default", &base_id] {
            assert_eq!(a.create(from(reference)).await.unwrap().template_id, base_id, "{reference}");
            assert_eq!(a.template(reference).await.unwrap(), None, "{reference} is another's to look at");
            assert!(matches!(a.delete_template(reference).await, Err(DeleteError::NotFound(_))), "{reference}");
        }
        let place = built(&a, "shared", own_image(), 256).await;
        a.update_template("shared", TemplateUpdate { public: Some(true), description: None }).await.unwrap().unwrap();
        assert!(b.create(from("shared")).await.is_err(), "a bare name is one's own");
        for reference in ["a/shared", "a/shared:default", place.template_id.as_str()] {
            let made = b.create(from(reference)).await.unwrap();
            assert_eq!((made.template_id.as_str(), made.owner.as_str()), (place.template_id.as_str(), "b"), "{reference}");
            assert_eq!(b.template(reference).await.unwrap(), None, "{reference}");
            assert!(b.delete_template(reference).await.is_err() && b.assign_tags(reference, vec!["x".into()]).await.is_err());
        }
        // Its owner learns that others use it, and not who.
        let DeleteError::InUse { users, .. } = a.delete_template("shared").await.unwrap_err() else { panic!("it is in use") };
        assert_eq!(users, ["another team"]);
        // Another team may have a `base` of its own, and means that.
        let own = built(&b, "base", own_image(), 256).await;
        assert_eq!(b.create(from("base")).await.unwrap().template_id, own.template_id);
        assert_eq!(a.create(from("base")).await.unwrap().template_id, base_id);
    });
}

#[test]
fn secrets_and_volumes_are_of_their_team() {
    let host = Host::new();
    host.serve(async |server| {
        let (a, b) = two(server).await;
        let secret = a.secrets().create("key", "value".into(), BTreeMap::new()).await.unwrap();
        for reference in ["key", &secret.id] {
            assert!(matches!(b.secrets().get(reference).await, Err(SecretError::NotFound(_))), "{reference}");
            assert!(matches!(b.secrets().destroy(reference).await, Err(SecretError::NotFound(_))), "{reference}");
        }
        let volume = a.volumes().create("data").await.unwrap();
        assert!(matches!(b.volumes().get(&volume.id).await, Err(VolumeError::NotFound(_))));
        assert!(matches!(b.destroy_volume(&volume.id).await, Err(DestroyVolumeError::Volume(VolumeError::NotFound(_)))));
        let mounting = CreateSandbox { volumes: vec![VolumeMount::new("data", "/mnt/data")], ..base() };
        let refused = b.create(mounting).await.unwrap_err();
        assert!(matches!(refused, CreateError::Volumes(MountsError::NotFound(_))), "{refused:?}");
        assert!(b.volumes().list().await.unwrap().is_empty() && b.secrets().list().await.unwrap().is_empty());
        b.volumes().create("data").await.unwrap();
        b.secrets().create("key", "another".into(), BTreeMap::new()).await.unwrap();
        assert_eq!(a.volumes().list().await.unwrap(), [volume]);
        let hash = "a".repeat(64);
        let mut upload = a.receive_files(&hash).unwrap();
        upload.write(b"archive").await.unwrap();
        upload.finish().await.unwrap();
        assert!(a.has_files(&hash).unwrap() && !b.has_files(&hash).unwrap() && !server.has_files(&hash).unwrap());
        let signature = a.sign_upload("t", &hash, i64::MAX);
        assert!(a.upload_is_signed("t", &hash, i64::MAX, &signature) && !b.upload_is_signed("t", &hash, i64::MAX, &signature));
    });
}

#[test]
fn a_team_has_no_more_than_its_quota() {
    let host = Host::new();
    host.serve(async |server| {
        let (a, b) = two(server).await;
        let id: TeamId = "a".parse().unwrap();
        let set = async |quota| server.set_team_quota(&id, quota).await.map(drop).unwrap();
        let quota = TeamQuota { running: Some(2), paused: Some(1), snapshots: Some(1), volumes: Some(1), ..TeamQuota::default() };
        set(quota).await;
        // Of many at once no more are let in than there is room for.
        let made = futures::future::join_all((0..6).map(|_| a.create(base()))).await;
        let (made, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
        let ids: Vec<_> = made.into_iter().map(|made| made.unwrap().id).collect();
        assert_eq!(ids.len(), 2);
        assert!(refused.iter().all(|refused| matches!(refused, Err(CreateError::TeamQuota(_)))));
        let told = a.fork(&ids[0], 1, MINUTE).await.unwrap_err().to_string();
        assert_eq!(told, "the team's quota is 2 running sandboxes: 2 in use, 1 asked for");
        b.create(base()).await.unwrap();
        // What is paused leaves room, and takes some of its own.
        a.pause(&ids[0]).await.unwrap();
        assert!(a.pause(&ids[1]).await.is_err());
        let third = a.create(base()).await.unwrap().id;
        assert!(a.connect(&ids[0], MINUTE).await.is_err(), "there is no room for it");
        a.kill(&third).await.unwrap();
        a.connect(&ids[0], MINUTE).await.unwrap();
        a.snapshot(&ids[0], None).await.unwrap();
        assert!(a.snapshot(&ids[1], None).await.is_err());
        b.volumes().create("one").await.unwrap();
        a.volumes().create("one").await.unwrap();
        assert!(matches!(a.volumes().create("two").await, Err(VolumeError::TeamQuota(_))));
        set(TeamQuota { running: None, creates_per_minute: Some(1), ..quota }).await;
        a.create(base()).await.unwrap();
        assert!(matches!(a.create(base()).await, Err(CreateError::TeamQuota(_))));
        // A rollback changes the machine and nothing of what is held.
        set(TeamQuota { running: Some(3), ..TeamQuota::default() }).await;
        let snapshot = a.snapshots().await.unwrap().remove(0);
        a.rollback(&ids[0], &snapshot.snapshot_id).await.unwrap();
        assert!(a.create(base()).await.is_err());
        a.kill(&ids[0]).await.unwrap();
        a.create(base()).await.unwrap();
    });
    // A new server counts what it finds.
    host.serve(async |server| {
        let a = server.within("a".parse().unwrap());
        let there = a.sandboxes().len();
        server.set_team_quota(&"a".parse().unwrap(), TeamQuota { disk_mib: Some(1), ..TeamQuota::default() }).await.unwrap();
        assert!(there == 0 || a.create(base()).await.unwrap_err().to_string().contains("MiB of disk"));
    });
}

#[test]
fn a_build_of_a_standard_template_counts_for_its_teams_disk() {
    Host::new().serve(async |server| {
        let (a, _) = two(server).await;
        let set = async |disk_mib| {
            let quota = TeamQuota { disk_mib, ..TeamQuota::default() };
            server.set_team_quota(&"a".parse().unwrap(), quota).await.unwrap();
        };
        let source = || Source::Standard(Box::new(BuildTemplate { ready: None, ..BuildTemplate::base() }));
        set(Some(1)).await;
        let place = request(&a, "own", 512).await;
        start(&a, &place, plan(source(), &[])).await;
        let refused = ended(&a, &place).await.reason.unwrap();
        assert!(refused.message.contains("MiB of disk"), "{refused:?}");
        set(None).await;
        built(&a, "own", source(), 512).await;
    });
}

#[test]
fn keys_open_their_team_until_they_end_and_across_a_restart() {
    let host = Host::new();
    let new = |scope, expires_at| NewKey { name: "for a test".into(), scope, expires_at };
    let (kept, gone) = host.serve(async |server| {
        let (a, _) = two(server).await;
        let team: TeamId = "a".parse().unwrap();
        let (kept, key) = server.add_key(&team, new(KeyScope::Read, None)).await.unwrap();
        let (gone, other) = server.add_key(&team, new(KeyScope::Full, None)).await.unwrap();
        let caller = server.authenticate(&key).unwrap();
        assert_eq!((caller.team.as_str(), caller.key.as_ref(), caller.scope), ("a", Some(&kept.id), KeyScope::Read));
        server.revoke_key(gone.id.as_str()).await.unwrap();
        assert!(server.authenticate(&other).is_none(), "at once");
        let soon = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1);
        assert!(matches!(server.add_key(&team, new(KeyScope::Full, Some(soon))).await, Err(TeamError::Ended)));
        assert!(matches!(server.add_key(&"c".parse().unwrap(), new(KeyScope::Full, None)).await, Err(TeamError::NoTeam(_))));
        assert!(matches!(server.add_team(team.clone(), None, TeamQuota::default()).await, Err(TeamError::Exists(_))));
        // Within a team nobody makes keys or looks at them.
        assert!(matches!(a.keys(None).await, Err(TeamError::NotTheHost)));
        assert!(matches!(a.add_key(&team, new(KeyScope::Full, None)).await, Err(TeamError::NotTheHost)));
        (key, other)
    });
    let state = fs_err::read_dir(host.state_dir()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    for path in state {
        let bytes = fs_err::read(&path).unwrap();
        assert!(!bytes.windows(kept.len()).any(|window| window == kept.as_bytes()), "{} has a key in it", path.display());
    }
    host.serve(async |server| {
        assert!(server.authenticate(&kept).is_some() && server.authenticate(&gone).is_none());
        let keys = server.keys(Some(&"a".parse().unwrap())).await.unwrap();
        assert_eq!(keys.len(), 2);
        assert!(keys[0].last_used_at.is_some(), "noted when the server before stopped");
        let past = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1);
        server.expire_key(keys[0].id.as_str(), Some(past)).await.unwrap();
        assert!(server.authenticate(&kept).is_none(), "at once");
    });
}
