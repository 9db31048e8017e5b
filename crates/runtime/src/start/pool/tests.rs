//! What the pool decides, without any machine: depth, order, patience.

use super::*;
use crate::{capacity::ResourceBudget, ground::team::TeamId, store::spec::SandboxId};

fn named(text: &str) -> Reference {
    text.parse().unwrap()
}

fn template(id: &str, artifact: &str) -> TemplateRecord {
    TemplateRecord {
        id: id.parse().unwrap(),
        owner: TeamId::first(),
        build_id: "b".parse().unwrap(),
        artifact: artifact.parse().unwrap(),
        budget: ResourceBudget { cpus: 1, memory_mib: 512, disk_mib: 1 },
        created_at: jiff::Timestamp::UNIX_EPOCH,
        updated_at: jiff::Timestamp::UNIX_EPOCH,
        spawn_count: 0,
        last_spawned_at: None,
        description: None,
        snapshot_of: None,
        made_from: None,
        recipe: None,
        warm_up: None,
        setup: crate::store::Setup::default(),
        runs_on: None,
        names: vec![format!("{id}:default").parse().unwrap()],
    }
}

fn pool(depth: Depth) -> WarmPool {
    let state = Mutex::new(State { stale: true, ..State::default() });
    WarmPool { config: WarmConfig { depth, prepared: Some(0), ..WarmConfig::default() }, cpus: 8, state, changed: Notify::new() }
}

/// Makes whatever is planned at `now` and in the second after, and gives the makers' ends.
fn fill(pool: &WarmPool, now: &mut Instant) -> Vec<Order> {
    let mut orders = Vec::new();
    let end = *now + Duration::from_secs(1);
    while *now < end {
        match pool.plan(*now) {
            Step::Make(order) => {
                pool.made(&order.template, order.item);
                orders.push(order);
            }
            Step::WaitUntil(at) => *now = at,
        }
    }
    orders
}

fn ready(pool: &WarmPool) -> BTreeMap<String, usize> {
    pool.status().templates.into_iter().map(|(id, shelf)| (id, shelf.ready)).collect()
}

#[test]
fn wanted_follows_demand_between_its_bounds() {
    let table = [
        (Depth { min: 1, max: 4 }, [(0, 1), (1, 1), (3, 3), (9, 4)]),
        (Depth { min: 0, max: 2 }, [(0, 0), (1, 1), (2, 2), (9, 2)]),
        (Depth { min: 3, max: 0 }, [(0, 3), (1, 3), (3, 3), (9, 3)]),
        (Depth::NONE, [(0, 0), (1, 0), (3, 0), (9, 0)]),
    ];
    for (depth, cases) in table {
        for (peak, wanted) in cases {
            assert_eq!(depth.wanted(peak), wanted, "{depth:?} after {peak}");
        }
    }
}

#[test]
fn a_pool_fills_to_its_minimum_and_grows_and_shrinks_with_demand() {
    let pool = pool(Depth { min: 1, max: 5 });
    pool.reconcile(&[template("t", "a")]);
    let mut now = Instant::now();
    let mut orders = fill(&pool, &mut now);
    assert_eq!(orders.len(), 1);
    for _ in 0..3 {
        pool.state().shelves.get_mut(&named("t")).unwrap().demand.record(now);
    }
    orders.extend(fill(&pool, &mut now));
    assert_eq!(orders.len(), 3, "three came at once");
    now += Duration::from_secs(600);
    assert!(fill(&pool, &mut now).is_empty());
    assert_eq!((ready(&pool)["t"], pool.status().retired), (1, 2));
    let ended = orders.iter_mut().filter_map(|order| order.claimed.try_recv().err());
    let ended = ended.filter(|error| *error == oneshot::error::TryRecvError::Closed).count();
    assert_eq!(ended, 2, "those that were too many are told to end");
}

#[test]
fn templates_have_depths_of_their_own_and_snapshots_have_none() {
    let mut pool = pool(Depth::at_least(2));
    pool.config.templates = BTreeMap::from([(named("big"), Depth::NONE), (named("ci"), Depth::at_least(3))]);
    let mut snapshot = template("snap", "s");
    snapshot.snapshot_of = Some(SandboxId::generate());
    pool.reconcile(&[template("base", "a"), template("big", "b"), template("ci", "c"), snapshot]);
    let orders = fill(&pool, &mut Instant::now());
    assert_eq!(ready(&pool), BTreeMap::from([("base".to_owned(), 2), ("ci".to_owned(), 3)]));
    assert_ne!(orders[0].template, orders[1].template, "an empty shelf comes first");
}

#[test]
fn each_build_that_a_tag_stands_for_has_a_shelf_of_its_own() {
    let mut pool = pool(Depth::NONE);
    pool.config.templates = BTreeMap::from([(named("app"), Depth::at_least(1)), (named("app:v1"), Depth::at_least(2))]);
    let tagged = |build: &str, tags: &[&str]| TemplateRecord {
        build_id: build.parse().unwrap(),
        names: tags.iter().map(|tag| named(&format!("app:{tag}"))).collect(),
        ..template("id", build)
    };
    // Another team's of that name is not what was meant.
    let others = TemplateRecord { owner: "b".parse().unwrap(), id: "x".parse().unwrap(), ..tagged("x", &["v1"]) };
    pool.reconcile(&[
        others,
        tagged("a", &["default", "v2"]),
        tagged("b", &["v0", "v1"]),
        tagged("c", &["v3"]),
        tagged("d", &[]),
    ]);
    fill(&pool, &mut Instant::now());
    assert_eq!(ready(&pool), BTreeMap::from([("id".to_owned(), 1), ("id:v0".to_owned(), 2)]));
}

#[test]
fn sessions_of_a_rebuilt_or_deleted_template_end() {
    let pool = pool(Depth { min: 1, max: 1 });
    pool.reconcile(&[template("t", "a"), template("u", "b")]);
    let orders = fill(&pool, &mut Instant::now());
    assert_eq!(orders.len(), 2);
    pool.reconcile(&[template("t", "a2")]);
    assert_eq!((ready(&pool), pool.status().retired), (BTreeMap::from([("t".to_owned(), 0)]), 2));
    for mut order in orders {
        assert_eq!(order.claimed.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed);
    }
}

#[test]
fn one_template_that_hangs_leaves_a_maker_to_the_others() {
    let mut pool = pool(Depth { min: 9, max: 9 });
    pool.cpus = 2;
    pool.config.templates = BTreeMap::from([(named("u"), Depth { min: 1, max: 1 })]);
    pool.reconcile(&[template("t", "a"), template("u", "b")]);
    let now = Instant::now();
    let Step::Make(first) = pool.plan(now) else { panic!("nothing is made") };
    let Step::WaitUntil(at) = pool.plan(now) else { panic!("refills have no rate limit") };
    let Step::Make(second) = pool.plan(at) else { panic!("the other template waits") };
    assert_ne!(first.template, second.template);
    let Step::WaitUntil(_) = pool.plan(at + TICK) else { panic!("more are made than there are makers") };
}

#[test]
fn refills_yield_to_creates() {
    let pool = pool(Depth { min: 1, max: 1 });
    pool.reconcile(&[template("t", "a")]);
    pool.state().creating = pool.cpus;
    assert!(matches!(pool.plan(Instant::now()), Step::WaitUntil(_)));
    pool.state().creating -= 1;
    assert!(matches!(pool.plan(Instant::now()), Step::Make(_)));
}

#[test]
fn a_sandbox_that_was_just_asked_for_has_the_host_to_itself_for_a_breath() {
    let pool = pool(Depth { min: 1, max: 1 });
    pool.reconcile(&[template("t", "a")]);
    let now = Instant::now();
    pool.creating(now);
    let Step::WaitUntil(over) = pool.plan(now) else { panic!("a refill competes with the sandbox's first command") };
    assert!(over > now && over <= now + BREATH);
    pool.creating(now + BREATH / 2);
    assert!(matches!(pool.plan(over), Step::Make(_)), "creates without end put refills off for ever");
}

#[test]
fn a_refill_that_fails_is_tried_again_ever_later() {
    let pool = pool(Depth { min: 1, max: 1 });
    pool.reconcile(&[template("t", "a")]);
    let (mut pauses, mut now) = (Vec::new(), Instant::now());
    for _ in 0..12 {
        let Step::Make(order) = pool.plan(now) else { panic!("never tried again") };
        pool.not_made(&order, false, now);
        let begun = now;
        while pool.state().shelves[&named("t")].patience[&Stage::Warm].retry_at.is_some_and(|at| at > now) {
            let Step::WaitUntil(at) = pool.plan(now) else { panic!("tried again too early") };
            now = at;
        }
        pauses.push((now - begun).as_secs());
    }
    assert_eq!((pauses[0], pauses[1], pauses[2], pauses[11]), (1, 2, 4, 300));
    assert_eq!(pool.status().failed_refills, 12);
    let Step::Make(order) = pool.plan(now) else { panic!("never tried again") };
    pool.not_made(&order, true, now);
    assert_eq!(pool.status().failed_refills, 12, "want of room is no failure");
}

#[tokio::test]
async fn the_least_valuable_session_is_evicted_and_its_end_is_waited_for() {
    let pool = Arc::new(pool(Depth { min: 1, max: 4 }));
    assert!(!pool.evict_one().await, "there is none");
    pool.reconcile(&[template("busy", "a"), template("idle", "b")]);
    let mut now = Instant::now();
    for _ in 0..2 {
        pool.state().shelves.get_mut(&named("busy")).unwrap().demand.record(now);
    }
    let orders = fill(&pool, &mut now);
    assert_eq!(orders.len(), 3);
    let evicting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.evict_one().await }
    });
    let mut told = None;
    for order in orders {
        let (template, ended) = (order.template.clone(), order.ended.clone());
        if template == named("idle") {
            assert!(order.claimed.await.is_err(), "the session of the idle template is told to end");
            assert!(!evicting.is_finished(), "it has not ended yet");
            told = Some(ended);
        }
    }
    told.unwrap().cancel();
    assert!(evicting.await.unwrap());
    assert_eq!((ready(&pool)["busy"], ready(&pool)["idle"], pool.status().evictions), (2, 0, 1));
    assert!(
        matches!(pool.plan(Instant::now()), Step::WaitUntil(at) if at > Instant::now() + QUIET / 2),
        "no refill takes what was freed"
    );
}

fn stages(orders: &[Order]) -> Vec<(&str, Stage)> {
    orders.iter().map(|order| (order.template.name.as_str(), order.stage)).collect()
}

#[test]
fn engines_are_prepared_after_sessions_are_warm_and_without_them() {
    let mut pool = pool(Depth { min: 3, max: 3 });
    pool.config.prepared = None;
    pool.config.templates = BTreeMap::from([(named("one"), Depth::at_least(1)), (named("none"), Depth::NONE)]);
    pool.config.prepared_templates = BTreeMap::from([(named("bare"), 1)]);
    pool.config.templates.insert(named("bare"), Depth::NONE);
    pool.reconcile(&[template("three", "a"), template("one", "b"), template("none", "c"), template("bare", "d")]);
    let orders = fill(&pool, &mut Instant::now());
    let made = stages(&orders);
    let count = |of: (&str, Stage)| made.iter().filter(|made| **made == of).count();
    assert_eq!([count(("three", Stage::Warm)), count(("one", Stage::Warm)), count(("bare", Stage::Warm))], [3, 1, 0]);
    assert_eq!(
        [count(("three", Stage::Prepared)), count(("one", Stage::Prepared)), count(("bare", Stage::Prepared))],
        [2, 1, 1],
        "as many as are always warm, at most two, unless it is said"
    );
    assert!(made[..4].iter().all(|(_, stage)| *stage == Stage::Warm), "{made:?}");
    assert_eq!(pool.status().templates["three"], ShelfStatus { wanted: 3, ready: 3, prepared: 2, making: 0 });
    assert_eq!(pool.status().templates.len(), 3);
}

#[test]
fn a_template_that_cannot_be_warmed_up_is_prepared_all_the_same() {
    let mut pool = pool(Depth { min: 1, max: 1 });
    pool.config.prepared = Some(1);
    pool.reconcile(&[template("t", "a")]);
    let now = Instant::now();
    let Step::Make(warm) = pool.plan(now) else { panic!("nothing is made") };
    pool.not_made(&warm, false, now);
    let Step::WaitUntil(at) = pool.plan(now) else { panic!("refills have no rate limit") };
    let Step::Make(prepared) = pool.plan(at) else { panic!("nothing is prepared") };
    assert_eq!((warm.stage, prepared.stage), (Stage::Warm, Stage::Prepared));
}

#[tokio::test]
async fn prepared_engines_are_evicted_before_any_warm_session() {
    let mut pool = pool(Depth { min: 1, max: 1 });
    pool.config.prepared = Some(1);
    pool.reconcile(&[template("t", "a"), template("u", "b")]);
    let mut orders = fill(&pool, &mut Instant::now());
    assert_eq!(orders.len(), 4);
    let mut evicted = Vec::new();
    while let Some(item) = pool.take_least(Instant::now()) {
        evicted.push(item.stage);
    }
    assert_eq!(evicted, [Stage::Prepared, Stage::Prepared, Stage::Warm, Stage::Warm]);
    assert!(orders.iter_mut().all(|order| matches!(order.claimed.try_recv(), Err(oneshot::error::TryRecvError::Closed))));
}

#[tokio::test]
async fn a_warm_session_takes_the_room_of_a_prepared_engine_that_is_large_enough() {
    let mut pool = pool(Depth::NONE);
    pool.config.prepared = Some(1);
    pool.reconcile(&[template("t", "a"), template("u", "b")]);
    let orders = fill(&pool, &mut Instant::now());
    orders.iter().for_each(|order| order.ended.cancel());
    let has = template("t", "a").budget;
    assert!(
        !pool.end_prepared(&named("u"), &ResourceBudget { memory_mib: has.memory_mib + 1, ..has }).await,
        "it would not help"
    );
    assert!(pool.end_prepared(&named("u"), &has).await);
    assert_eq!(pool.status().templates["u"].prepared, 0, "of the same template, if there is one");
    assert!(pool.end_prepared(&named("u"), &has).await);
    assert!(!pool.end_prepared(&named("u"), &has).await);
    assert_eq!((pool.status().retired, pool.status().evictions), (2, 0));
}

#[test]
fn a_full_disk_is_news_once_and_so_is_its_end() {
    let pool = pool(Depth { min: 1, max: 1 });
    let news: Vec<bool> = [false, true, true, false, false, true].map(|short| pool.note_disk(short)).into();
    assert_eq!(news, [false, true, false, true, false, true]);
    assert!(!pool.status().short_of_disk, "nothing is to be kept warm");
    pool.reconcile(&[template("a", "x")]);
    assert!(pool.status().short_of_disk);
}
