//! What two servers hold that have one catalogue at the same time: each has its own sandboxes, states of builds, builds under way and deliveries,
//! and all the rest is everybody's.

use std::sync::Arc;

use super::{Kept, LifecycleKind, build, built, found, parse, same, sandbox};
use crate::{
    ground::{reference::Sought, team::Scope},
    store::{
        BuildReason, BuildState, Defaults, Delivery, Guard, LayerRecord, SandboxRecord, Store, StoreError, Webhook, contract::at,
        database::Database,
    },
};

/// Runs the list on what two servers have of one database.
pub async fn check_beside(one: Arc<dyn Database>, other: Arc<dyn Database>) -> Kept {
    let (one, other) = (Store::of(one), Store::of(other));
    one.ensure_first_team().await?;
    other.ensure_first_team().await?;
    a_sandbox_is_ones_own((&one, &other)).await?;
    templates_are_everybodys((&one, &other)).await?;
    builds_are_ended_by_whose_they_are((&one, &other)).await?;
    states_are_ones_own((&one, &other)).await?;
    deliveries_are_sent_once((&one, &other)).await
}

type Two<'a> = (&'a Store, &'a Store);

async fn ids(store: &Store) -> Result<Vec<String>, StoreError> {
    Ok(store.sandboxes(Scope::Host).await?.into_iter().map(|sandbox| sandbox.id.to_string()).collect())
}

async fn a_sandbox_is_ones_own((one, other): Two<'_>) -> Kept {
    let (mine, theirs) = (sandbox("ibeside1", "template")?, sandbox("ibeside2", "template")?);
    one.insert_sandbox(mine.clone()).await?;
    other.insert_sandbox(theirs.clone()).await?;
    same("a server has its own", (ids(one).await?, ids(other).await?), (vec![mine.id.to_string()], vec![theirs.id.to_string()]))?;
    let fenced = |done: Result<(), StoreError>| matches!(done, Err(StoreError::Fenced { .. }));
    same("an id is given once", fenced(other.insert_sandbox(mine.clone()).await), true)?;
    let next = SandboxRecord { epoch: 2, ..mine.clone() };
    same("another's is not changed", fenced(other.update_sandbox(next, Guard { epoch: 1 }).await), true)?;
    // To another server it is as if it were not there.
    other.remove_sandbox(mine.id.clone(), mine.guard()).await?;
    same("nor removed", one.sandboxes(Scope::Host).await?, vec![mine.clone()])?;
    let used = one.in_use().await?.artifacts;
    let held = |record: &SandboxRecord| parse(&format!("artifactof{}", record.id)).map(|artifact| used.contains(&artifact));
    same("what any of them needs is kept", (held(&mine)?, held(&theirs)?), (true, true))?;
    let all: Vec<_> = one.everyones_sandboxes().await?.into_iter().map(|sandbox| sandbox.id).collect();
    same("who asks for all has all", all, vec![mine.id.clone(), theirs.id.clone()])?;
    one.remove_sandbox(mine.id.clone(), mine.guard()).await?;
    other.remove_sandbox(theirs.id.clone(), theirs.guard()).await.map_err(Into::into)
}

async fn templates_are_everybodys((one, other): Two<'_>) -> Kept {
    let version = built(one, "beside1", Some("beside"), "beside", &["default"]).await?;
    let scope = Scope::Team(version.owner.clone());
    same("a template is everybody's", found(other, &scope, "beside").await?, "beside1".to_owned())?;
    let mut user = sandbox("ibeside3", version.id.as_str())?;
    user.template_id = version.id.clone();
    one.insert_sandbox(user.clone()).await?;
    let users = other.delete_template(version.id.clone()).await?;
    same("one that another's sandboxes stand on stays", users, vec![(user.owner.clone(), user.id.clone())])?;
    one.remove_sandbox(user.id.clone(), user.guard()).await?;
    same("and then it goes", other.delete_template(version.id.clone()).await?, Vec::new())?;
    same("for everybody", found(one, &scope, "beside").await?, "absent".to_owned())
}

async fn builds_are_ended_by_whose_they_are((one, other): Two<'_>) -> Kept {
    let mut ids = Vec::new();
    for (store, id) in [(one, "beside2"), (other, "beside3")] {
        let (asked, _) = store.request_build(build(id, Some(id), "beside", &["default"])?).await?;
        store.begin_build(asked.id.clone(), at(1)).await?;
        ids.push(asked.id);
    }
    let reason = BuildReason { message: "it is over".to_owned(), step: "base".to_owned() };
    one.fail_builds_under_way(reason, at(2)).await?;
    let state = async |id: usize| Ok::<_, StoreError>(other.build(&Scope::Host, ids[id].clone()).await?.map(|build| build.state));
    same("a server that starts ends its own", state(0).await?, Some(BuildState::Error))?;
    same("and none of another", state(1).await?, Some(BuildState::Building))?;
    one.forget_ended_builds(usize::MAX).await?;
    same("nor what is built", one.family(Scope::Host, parse::<Sought>("beside/beside3")?).await?.is_some(), true)
}

async fn states_are_ones_own((one, other): Two<'_>) -> Kept {
    let state = |artifact: &str| {
        let artifact = parse(artifact)?;
        Ok::<_, super::Broken>(LayerRecord { key: "beside".to_owned(), artifact, context: Defaults::default(), used_at: at(1) })
    };
    let (mine, theirs) = (state("mine")?, state("theirs")?);
    one.put_layer(mine.clone()).await?;
    other.put_layer(theirs.clone()).await?;
    same("a state is where it was made", one.layer("beside".to_owned()).await?, Some(mine.clone()))?;
    other.trim_layers(0).await?;
    same(
        "and goes from there",
        (one.layer("beside".to_owned()).await?, other.layer("beside".to_owned()).await?),
        (Some(mine), None),
    )?;
    one.trim_layers(0).await.map(drop).map_err(Into::into)
}

async fn deliveries_are_sent_once((one, other): Two<'_>) -> Kept {
    let hook = Webhook {
        id: parse("beside")?,
        owner: parse("beside")?,
        name: "n".to_owned(),
        url: "https://a.example/".to_owned(),
        events: [LifecycleKind::Created].into(),
        enabled: true,
        created_at: at(0),
        secret: "hush".to_owned(),
    };
    let (id, scope) = (hook.id.clone(), Scope::Team(hook.owner.clone()));
    one.add_webhook(hook).await?;
    let delivery = |id: &str| Delivery {
        event_id: id.to_owned(),
        kind: LifecycleKind::Created,
        payload: "{}".to_owned(),
        at: at(1),
        attempts: 0,
        error: None,
    };
    one.enqueue(vec![(id.clone(), delivery("mine"))]).await?;
    other.enqueue(vec![(id.clone(), delivery("theirs"))]).await?;
    let heads = async |store: &Store| {
        let heads = store.heads().await?.into_iter().filter(|head| head.webhook.id == id);
        Ok::<_, StoreError>(heads.map(|head| head.delivery.event_id).collect::<Vec<_>>())
    };
    same(
        "a server sends what it has to tell",
        (heads(one).await?, heads(other).await?),
        (vec!["mine".to_owned()], vec!["theirs".to_owned()]),
    )?;
    same("and all are shown", other.deliveries(scope.clone(), id.clone()).await?.map(|shown| shown.len()), Some(2))?;
    same("until their webhook goes", other.delete_webhook(scope, id.clone()).await?, true)?;
    same("for everybody", heads(one).await?, Vec::new())
}
