//! What every catalogue has to hold, as a list that is run on it: for the databases that there are, and for whoever writes another one.
//!
//! It goes by operations as the server does them, and looks at what comes of them together: who of many comes first, what who comes too late
//! is told, in what order lists are, that what fails leaves nothing.

use std::{future::Future, path::Path, sync::Arc};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;

use super::{
    BuildLogEntry, BuildRecord, BuildState, Defaults, Delivery, Guard, Held, KeyBounds, KeyRecord, KeyScope, LayerRecord,
    LifecycleKind, RecordedPhase, SandboxRecord, Setup, Spawns, Sqlite, Store, StoreError, TeamRecord, TemplateRecord, Webhook,
    WebhookChange,
    database::Database,
    spec::{CreateSandbox, Memory},
    state_dir::DATABASE,
    teams::Added,
    templates::Lookup,
};
use crate::{
    capacity::{ResourceBudget, TeamQuota},
    ground::{
        ids::KeyId,
        reference::{Reference, Sought, Tag},
        team::{Scope, TeamId},
    },
};

mod beside;

pub use beside::check_beside;

/// How many try the same at once. More than a pool of connections has.
const RACERS: usize = 24;

/// How often they do.
const ROUNDS: u64 = 10;

/// What a catalogue does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It did something else.
    #[error("{what}: {found}")]
    Otherwise {
        /// What it should do.
        what: &'static str,
        /// What it did.
        found: String,
    },
    /// It failed.
    #[error("an operation failed")]
    Store(#[from] StoreError),
    /// A name of the list is none.
    #[error("a name is none")]
    Name(#[source] Box<dyn std::error::Error + Send + Sync>),
}

type Kept = Result<(), Broken>;

fn same<T: PartialEq + std::fmt::Debug>(what: &'static str, found: T, wanted: T) -> Kept {
    let otherwise = || Broken::Otherwise { what, found: format!("{found:?} and not {wanted:?}") };
    if found == wanted { Ok(()) } else { Err(otherwise()) }
}

fn parse<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(text: &str) -> Result<T, Broken> {
    text.parse().map_err(|error| Broken::Name(Box::new(error)))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

/// Runs the list on a database that holds nothing, or nothing but the first team.
pub async fn check(database: Arc<dyn Database>) -> Result<(), Broken> {
    let store = Store::of(database);
    store.ensure_first_team().await?;
    sandboxes_have_one_writer(&store).await?;
    templates_are_found_by_whom_they_are_for(&store).await?;
    tags_move_and_versions_go(&store).await?;
    counts_lose_nothing(&store).await?;
    what_fails_leaves_nothing(&store).await?;
    snapshots_and_states_are_known_by_what_they_hold(&store).await?;
    keys_are_a_teams(&store).await?;
    deliveries_come_in_turn(&store).await
}

/// Leaves what the list leaves in the database of a state directory, and a delivery: what there is to be moved and backed up, in tests.
pub async fn leave_behind(state_dir: &Path) -> Result<(), Broken> {
    let database = Arc::new(Sqlite::open(&state_dir.join(DATABASE)).await?);
    check(database.clone()).await?;
    let store = Store::of(database);
    let delivery = Delivery {
        event_id: "last".to_owned(),
        kind: LifecycleKind::Created,
        payload: "{}".to_owned(),
        at: at(9),
        attempts: 0,
        error: None,
    };
    store.enqueue(vec![(parse("two")?, delivery)]).await?;
    store.insert_sandbox(sandbox("i1", "template")?).await?;
    Ok(store.close().await?)
}

/// What is on record of a sandbox, as the store writes it: paused, or running. For tests of what lies below.
pub fn sandbox_body(id: &str, epoch: u64, is_paused: bool) -> Result<String, Broken> {
    let mut record = SandboxRecord { epoch, ..sandbox(id, "template")? };
    if !is_paused {
        let (memory_base, overlay) = (parse("base")?, parse("overlay")?);
        record.phase = RecordedPhase::Running { memory_base, layers: Vec::new(), overlay, slot: 1, instance: None, nonce: None };
    }
    Ok(super::to_json("sandboxes", &record)?)
}

/// How many of `RACERS` do it, and that the others are told that they came too late.
async fn winners<F: Future<Output = Result<(), StoreError>>>(race: impl Fn(usize) -> F) -> Result<usize, Broken> {
    let done: Vec<_> = stream::iter((0..RACERS).map(race)).buffer_unordered(RACERS).collect().await;
    let mut won = 0;
    for one in done {
        match one {
            Ok(()) => won += 1,
            Err(StoreError::Fenced { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(won)
}

async fn sandboxes_have_one_writer(store: &Store) -> Kept {
    let one = sandbox("i1", "template")?;
    let won = winners(|_| store.insert_sandbox(one.clone())).await?;
    same("a sandbox is inserted once", won, 1)?;
    for epoch in 1..=ROUNDS {
        let claim = |racer: usize| {
            let mut next = SandboxRecord { epoch: epoch + 1, ..one.clone() };
            next.access_token = Some(racer.to_string());
            store.update_sandbox(next, Guard { epoch })
        };
        same("a life is claimed once", winners(claim).await?, 1)?;
    }
    let stale = Guard { epoch: ROUNDS };
    let late = store.update_sandbox(SandboxRecord { epoch: ROUNDS + 9, ..one.clone() }, stale).await;
    same("who knows an earlier life changes nothing", matches!(late, Err(StoreError::Fenced { .. })), true)?;
    let late = store.remove_sandbox(one.id.clone(), stale).await;
    same("who knows an earlier life removes nothing", matches!(late, Err(StoreError::Fenced { .. })), true)?;
    let epochs: Vec<_> = store.sandboxes(Scope::Host).await?.into_iter().map(|sandbox| sandbox.epoch).collect();
    same("the last claim is on record", epochs, vec![ROUNDS + 1])?;
    let other = SandboxRecord { owner: parse("blue")?, ..sandbox("i0", "template")? };
    store.insert_sandbox(other.clone()).await?;
    // Held to the byte, whatever the database makes of JSON.
    let odd = "quote \" zero \0 star \u{1F31F} back\\slash \\u0000 ?1 $1 '";
    let mut odd_one = sandbox("ia", "template")?;
    odd_one.access_token = Some(odd.to_owned());
    odd_one.spec.metadata.insert(odd.to_owned(), odd.to_owned());
    store.insert_sandbox(odd_one.clone()).await?;
    store.insert_sandbox(sandbox("i10", "template")?).await?;
    let all = store.sandboxes(Scope::Host).await?;
    same("sandboxes come by id", all.iter().map(|s| s.id.as_str()).collect(), vec!["i0", "i1", "i10", "ia"])?;
    same("what is recorded is what is read", all.last(), Some(&odd_one))?;
    let blue = store.sandboxes(Scope::Team(other.owner.clone())).await?;
    same("a team sees its own", blue, vec![other])?;
    for sandbox in all {
        store.remove_sandbox(sandbox.id.clone(), sandbox.guard()).await?;
        store.remove_sandbox(sandbox.id.clone(), sandbox.guard()).await?;
    }
    same("what is removed is gone", store.sandboxes(Scope::Host).await?.len(), 0)
}

/// Builds `build` of `name` for a team; gives what is on record.
async fn built(store: &Store, id: &str, name: Option<&str>, owner: &str, tags: &[&str]) -> Result<TemplateRecord, Broken> {
    let asked = build(id, name, owner, tags)?;
    let (asked, _) = store.request_build(asked).await?;
    let begun = store.begin_build(asked.id.clone(), at(1)).await?;
    same("a build that waits begins", begun.as_ref().map(|b| b.state), Some(BuildState::Building))?;
    same("it begins once", store.begin_build(asked.id.clone(), at(1)).await?, None)?;
    let ended = BuildRecord { state: BuildState::Ready, updated_at: at(2), finished_at: Some(at(2)), ..asked };
    let version = version(&ended)?;
    same("a build ends", store.end_build(ended, log(), Some(version.clone())).await?, true)?;
    Ok(version)
}

async fn found(store: &Store, scope: &Scope, reference: &str) -> Result<String, Broken> {
    let sought: Sought = parse(reference)?;
    Ok(match store.usable_template(scope.clone(), sought).await? {
        Lookup::Found(version) => version.build_id.to_string(),
        Lookup::NoTag { tags, .. } => format!("no tag but {}", tags.join(" ")),
        Lookup::Absent => "absent".to_owned(),
    })
}

async fn templates_are_found_by_whom_they_are_for(store: &Store) -> Kept {
    let (green, blue): (TeamId, TeamId) = (parse("green")?, parse("blue")?);
    let app = built(store, "b1", Some("app"), "green", &["default", "v1"]).await?;
    built(store, "b2", Some("app"), "blue", &["default"]).await?;
    built(store, "b3", Some("base"), "firkin", &["default"]).await?;
    let (green, blue) = (Scope::Team(green), Scope::Team(blue));
    let id = app.id.as_str();
    for (scope, reference, wanted) in [
        (&green, "app", "b1"),
        (&green, "app:v1", "b1"),
        (&green, id, "b1"),
        (&green, "app:v2", "no tag but default v1"),
        (&blue, "app", "b2"),
        (&blue, id, "absent"),
        (&blue, "green/app", "absent"),
        (&blue, "base", "b3"),
        (&blue, "nothing", "absent"),
        (&Scope::Host, "green/app", "b1"),
    ] {
        same("a template is found by whom it is for", found(store, scope, reference).await?, wanted.to_owned())?;
    }
    let sought: Sought = parse("app")?;
    let own = (green.clone(), sought.clone());
    let changed = store.update_template(own, Some(true), Some("what \0 for".to_owned())).await?;
    same("a template is changed", changed, Some(app.id.clone()))?;
    same("a public one is found by all", found(store, &blue, "green/app").await?, "b1".to_owned())?;
    let shared = store.family(green.clone(), sought).await?.and_then(|family| family.description);
    same("its description is what was given", shared.as_deref(), Some("what \0 for"))?;
    let ids: Vec<_> = store.templates(Scope::Host).await?.into_iter().map(|version| version.id).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    same("templates come by id", ids, sorted)?;
    same("the log is kept", store.build_log(app.build_id.clone()).await?, log())?;
    let mut user = sandbox("i1", id)?;
    user.template_id = app.id.clone();
    store.insert_sandbox(user.clone()).await?;
    let users = store.delete_template(app.id.clone()).await?;
    same("a template in use stays", users, vec![(user.owner.clone(), user.id.clone())])?;
    store.remove_sandbox(user.id.clone(), user.guard()).await?;
    same("one that is not goes", store.delete_template(app.id.clone()).await?, Vec::new())?;
    same("nobody finds it", found(store, &green, "app").await?, "absent".to_owned())?;
    same("its log is gone too", store.build_log(app.build_id.clone()).await?, Vec::new())
}

async fn tags_move_and_versions_go(store: &Store) -> Kept {
    let scope = Scope::Team(parse("tags")?);
    let first = built(store, "t1", Some("tagged"), "tags", &["default"]).await?;
    let second = built(store, "t2", Some("tagged"), "tags", &["v2"]).await?;
    same("builds of one name are one template", &second.id, &first.id)?;
    let id = store.family(scope.clone(), parse::<Sought>("tagged")?).await?.map(|family| family.id);
    same("that of the first", id.as_ref(), Some(&first.id))?;
    let names: Vec<Reference> = vec![parse("tagged:default")?];
    same("a tag moves", store.add_names(second.build_id.clone(), names.clone()).await?, true)?;
    same("to the other version", found(store, &scope, "tagged").await?, "t2".to_owned())?;
    let left: Vec<_> = store.templates(scope.clone()).await?.into_iter().map(|version| version.build_id.to_string()).collect();
    same("what has no tag is gone", left, vec!["t2".to_owned()])?;
    let missing: Reference = parse("tagged:v9")?;
    let both = vec![names[0].clone(), missing.clone()];
    let team: TeamId = parse("tags")?;
    same("of several all are removed or none", store.remove_names(team.clone(), both).await?, Some(missing))?;
    same("and they stay", found(store, &scope, "tagged").await?, "t2".to_owned())?;
    same("a tag is removed", store.remove_names(team, names).await?, None)?;
    same("the other stays", found(store, &scope, "tagged").await?, "no tag but v2".to_owned())
}

async fn counts_lose_nothing(store: &Store) -> Kept {
    let of_one = |racer: usize| async move {
        let asked = build(&format!("race{racer}"), Some("raced"), "race", &["default"]);
        Ok::<_, Broken>(store.request_build(asked?).await?.0.template_id)
    };
    let ids: Vec<_> = stream::iter((0..RACERS).map(of_one)).buffer_unordered(RACERS).collect().await;
    let mut ids = ids.into_iter().collect::<Result<Vec<_>, _>>()?;
    ids.sort();
    ids.dedup();
    same("many who build a name at once build one template", ids.len(), 1)?;
    let counted = stream::iter(0..RACERS)
        .map(|_| store.count_spawns([(ids[0].clone(), Spawns { count: 1, last_at: at(9) })].into()))
        .buffer_unordered(RACERS);
    for one in counted.collect::<Vec<_>>().await {
        one?;
    }
    let scope = Scope::Team(parse("race")?);
    let family = store.family(scope.clone(), parse::<Sought>("raced")?).await?;
    same("none of many counts is lost", family.map(|family| family.spawn_count), Some(RACERS as u64))?;
    same("all are on record", store.builds(scope).await?.len(), RACERS)
}

async fn what_fails_leaves_nothing(store: &Store) -> Kept {
    let scope = Scope::Team(parse("twice")?);
    store.request_build(build("twice", Some("twice"), "twice", &["default"])?).await?;
    let again = store.request_build(build("twice", Some("other"), "twice", &["default"])?).await;
    same("an id is given once", matches!(again, Err(StoreError::Refused { .. })), true)?;
    let other = store.family(scope.clone(), parse::<Sought>("other")?).await?;
    same("what failed is undone", other.is_none(), true)?;
    same("and the next goes on", store.builds(scope).await?.len(), 1)
}

async fn snapshots_and_states_are_known_by_what_they_hold(store: &Store) -> Kept {
    let team: TeamId = parse("snaps")?;
    let mut snapshot = version(&build("s1", None, "snaps", &[])?)?;
    snapshot.snapshot_of = Some(parse("isnap")?);
    snapshot.names = vec![parse("mine:v1")?];
    let put = |record: TemplateRecord| store.put_snapshot(record, Some(1));
    same("a snapshot is recorded", put(snapshot.clone()).await?.is_ok(), true)?;
    let mut more = version(&build("s2", None, "snaps", &[])?)?;
    more.snapshot_of.clone_from(&snapshot.snapshot_of);
    same("not more than may be", put(more).await?.err(), Some(1))?;
    same("they are counted", store.count_snapshots(team).await?, 1)?;
    same("and found by the sandbox", store.snapshots_of(parse("isnap")?).await?, vec![snapshot.artifact.clone()])?;
    let named = store.named([snapshot.artifact.clone(), parse("nobodys")?].into()).await?;
    let of: Vec<_> = named.into_iter().map(|named| (named.artifact, named.snapshot_of)).collect();
    same("and by the artifact", of, vec![(snapshot.artifact.clone(), snapshot.snapshot_of.clone())])?;
    for second in 0..4 {
        let (key, artifact) = (format!("key{second}"), parse(&format!("state{second}"))?);
        store.put_layer(LayerRecord { key, artifact, context: Defaults::default(), used_at: at(second) }).await?;
    }
    let Some(first) = store.layer("key0".to_owned()).await? else {
        return same("a state is found", false, true);
    };
    store.use_layer(first.clone(), at(99)).await?;
    same("one that was used since stays", store.delete_layer_as(first).await?, false)?;
    same("some go", store.trim_layers(2).await?, true)?;
    let used = store.in_use().await?;
    let mut states: Vec<_> = used.states.into_iter().map(|state| state.key).collect();
    states.sort();
    same("those used last stay", states, vec!["key0".to_owned(), "key3".to_owned()])?;
    same("what a snapshot names is in use", used.artifacts.contains(&snapshot.artifact), true)
}

async fn keys_are_a_teams(store: &Store) -> Kept {
    let team = TeamRecord { id: parse("keys")?, name: "k".to_owned(), created_at: at(0), quota: TeamQuota::default() };
    let most = u32::try_from(store.teams().await?.len()).unwrap_or(u32::MAX) + 1;
    same("a team is added", store.add_team(team.clone(), most).await?, Added::Yes)?;
    same("once", store.add_team(team.clone(), most).await?, Added::NotNew)?;
    let other = TeamRecord { id: parse("keyz")?, ..team.clone() };
    same("not more than may be", store.add_team(other.clone(), most).await?, Added::TooMany)?;
    let key = |name: &str, team: &TeamId| KeyRecord {
        id: KeyId::generate(),
        team: team.clone(),
        name: name.to_owned(),
        scope: KeyScope::Full,
        created_at: Some(at(10)),
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
    };
    let bounds = KeyBounds { good: 3, dead: 1, dead_since: at(0) };
    let lost = store.add_key([9; 32], key("lost", &other.id), bounds).await?;
    same("a key is a team's", lost.0, Added::NoTeam)?;
    let race: Vec<_> = stream::iter(0..8_u8)
        .map(|racer| store.add_key([racer; 32], key("raced", &team.id), bounds))
        .buffer_unordered(8)
        .collect()
        .await;
    let added = race.into_iter().collect::<Result<Vec<_>, _>>()?;
    let yes = added.iter().filter(|(added, _)| *added == Added::Yes).count();
    same("of many no more are added than may be", yes, 3)?;
    let keys = store.keys(Scope::Team(team.id.clone())).await?;
    let Some((digest, first)) = keys.first().cloned() else { return same("keys are found", false, true) };
    let used = store.note_uses(vec![(first.id.clone(), at(60)), (KeyId::generate(), at(60))]).await;
    used?;
    let revoked = store.change_key(first.id.clone(), |key| key.revoked_at = Some(at(61))).await?;
    let seen = revoked.map(|key| (key.last_used_at, key.revoked_at));
    same("a key is changed, and keeps its use", seen, Some((Some(at(60)), Some(at(61)))))?;
    let again = store.add_key(digest, key("again", &team.id), bounds).await;
    same("a digest opens one thing", matches!(again, Err(StoreError::Refused { .. })), true)?;
    let quota = TeamQuota::default();
    same("a team that is not there has no quota", store.set_team_quota(other.id, quota).await?, None)
}

async fn deliveries_come_in_turn(store: &Store) -> Kept {
    let hook = |id: &str| {
        Ok::<_, Broken>(Webhook {
            id: parse(id)?,
            owner: parse("hooks")?,
            name: "n".to_owned(),
            url: "https://a.example/".to_owned(),
            events: [LifecycleKind::Created].into(),
            enabled: true,
            created_at: at(0),
            secret: "hush".to_owned(),
        })
    };
    let (one, two) = (hook("one")?, hook("two")?);
    let scope = Scope::Team(one.owner.clone());
    same("a webhook is added", store.add_webhook(one.clone()).await? && store.add_webhook(two.clone()).await?, true)?;
    let delivery = |second: i64| Delivery {
        event_id: second.to_string(),
        kind: LifecycleKind::Created,
        payload: "{\"a\": \"\\u0000\"}".to_owned(),
        at: at(second),
        attempts: 3,
        error: None,
    };
    let to = |hook: &Webhook, second| (hook.id.clone(), delivery(second));
    store.enqueue(vec![to(&one, 5), to(&one, 2), to(&two, 3), (parse("gone")?, delivery(1))]).await?;
    let heads = async || {
        let heads = store.heads().await?;
        Ok::<_, Broken>(heads.into_iter().map(|head| (head.number, head.delivery)).collect::<Vec<_>>())
    };
    let first = heads().await?;
    let whole: Vec<_> = first.iter().map(|(_, delivery)| delivery.clone()).collect();
    same("the first of each is due", whole, vec![delivery(2), delivery(3)])?;
    store.not_delivered(first[0].0, one.id.clone(), delivery(2), None).await?;
    store.delivered(first[1].0).await?;
    let next: Vec<_> = heads().await?.into_iter().map(|(_, delivery)| delivery.event_id).collect();
    same("then the next", next, vec!["5".to_owned()])?;
    let listed = store.deliveries(scope.clone(), one.id.clone()).await?.unwrap_or_default();
    let shown = listed.iter().map(|shown| (shown.delivery.event_id.as_str(), shown.due, shown.delivery.payload.len()));
    same("the newest first, without what is sent", shown.collect(), vec![("2", None, 0), ("5", Some(at(5)), 0)])?;
    same("what was given up is sent again", store.revive(scope.clone(), one.id.clone(), at(1)).await?, Some(1))?;
    let again: Vec<_> = heads().await?.into_iter().map(|(_, d)| (d.event_id, d.attempts, d.payload.len())).collect();
    same("from the first attempt", again, vec![("2".to_owned(), 0, delivery(2).payload.len())])?;
    let off = WebhookChange { enabled: Some(false), ..WebhookChange::default() };
    store.change_webhook(scope.clone(), one.id.clone(), off).await?;
    same("nothing goes to one that is off", heads().await?.len(), 0)?;
    same("a webhook goes", store.delete_webhook(scope.clone(), one.id.clone()).await?, true)?;
    same("with what waited for it", store.deliveries(scope.clone(), one.id).await?.is_none(), true)?;
    let left: Vec<_> = store.webhooks(scope).await?.into_iter().map(|hook| hook.id).collect();
    same("the other stays", left, vec![two.id])
}

fn log() -> Vec<BuildLogEntry> {
    let level = firkin_wire::rest::LogLevel::Info;
    vec![BuildLogEntry { at: at(1), level, step: "base".to_owned(), message: "line \0 \u{e9}".to_owned() }]
}

fn build(id: &str, name: Option<&str>, owner: &str, tags: &[&str]) -> Result<BuildRecord, Broken> {
    Ok(BuildRecord {
        id: parse(id)?,
        owner: parse(owner)?,
        template_id: parse(&format!("templateof{id}"))?,
        name: name.map(parse).transpose()?,
        tags: tags.iter().map(|tag| parse::<Tag>(tag)).collect::<Result<_, _>>()?,
        cpus: 1,
        memory_mib: 512,
        min_free_disk_mib: None,
        disk_mib: None,
        state: BuildState::Waiting,
        reason: None,
        created_at: at(0),
        updated_at: at(0),
        finished_at: None,
    })
}

pub(super) fn version(build: &BuildRecord) -> Result<TemplateRecord, Broken> {
    Ok(TemplateRecord {
        id: build.template_id.clone(),
        owner: build.owner.clone(),
        build_id: build.id.clone(),
        artifact: parse(&format!("artifactof{}", build.id))?,
        budget: ResourceBudget { cpus: 1, memory_mib: 512, disk_mib: 8 },
        created_at: build.created_at,
        updated_at: build.updated_at,
        spawn_count: 0,
        last_spawned_at: None,
        description: None,
        snapshot_of: None,
        made_from: None,
        recipe: None,
        warm_up: None,
        setup: Setup::default(),
        runs_on: Some("none".to_owned()),
        names: build.names(),
    })
}

pub(super) fn sandbox(id: &str, template: &str) -> Result<SandboxRecord, Broken> {
    Ok(SandboxRecord {
        id: parse(id)?,
        owner: TeamId::first(),
        spec: CreateSandbox::from_template(template.to_owned()),
        template_id: parse(template)?,
        build_id: None,
        alias: None,
        budget: ResourceBudget { cpus: 1, memory_mib: 512, disk_mib: 8 },
        started_at: at(0),
        end_at: at(60),
        access_token: None,
        traffic_token: None,
        epoch: 1,
        forked_from: None,
        defaults: Defaults::default(),
        inherited: None,
        phase: RecordedPhase::Paused(Held { artifact: parse(&format!("artifactof{id}"))?, epoch: None, memory: Memory::Kept }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sqlite_holds_what_a_catalogue_has_to() {
        let dir = tempfile::tempdir().unwrap();
        let database = Arc::new(Sqlite::open(&dir.path().join("firkin.db")).await.unwrap());
        check(database).await.unwrap();
    }
}
