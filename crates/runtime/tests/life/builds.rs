//! Template builds and what must hold whatever becomes of them: nothing is left of one that is cancelled or cut off, and names
//! stand for what they were built as.

use std::time::Duration;

use firkin_runtime::{
    build::{BuildPlan, BuildRequest, RequestedBuild, Source, StepSpec},
    config::GuestSystem,
    images::ImageRequest,
    sandbox::{CreateSandbox, SandboxState},
    standard::BuildTemplate,
    store::BuildState,
    team::TeamId,
};

use crate::{
    bench::{Host, STANDARD, base, until},
    building::{built, ended, own_builds, own_image, plan, request, start},
};

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_build_whose_end_is_not_on_record_has_failed_wherever_it_is_shown() {
    let host = Host::new();
    host.serve(async |server| {
        let place = request(server, "app", 512).await;
        let store = rusqlite::Connection::open(host.state_dir().join("firkin.db")).unwrap();
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON build_logs BEGIN SELECT RAISE(ABORT, 'no'); END";
        store.execute_batch(refuse).unwrap();
        start(server, &place, plan(own_image(), &[])).await;
        let shown = ended(server, &place).await;
        assert_eq!(shown.state, BuildState::Error);
        assert_eq!(own_builds(server).await, std::slice::from_ref(&shown));
        assert_eq!(server.template_builds(&place.template_id).await.unwrap(), [shown]);
        let listed = server.templates().await.unwrap().into_iter().find(|template| template.id == place.template_id);
        assert_eq!(listed.as_ref().map(|template| template.state), Some(BuildState::Error));
        assert_eq!(server.template("app").await.unwrap(), listed);
    });
}

#[test]
fn a_source_is_booted_once_for_each_shape() {
    let host = Host::new();
    host.serve(async |server| {
        built(server, "one", own_image(), 1024).await;
        let before = host.artifacts();
        built(server, "two", own_image(), 1024).await;
        built(server, "three", Source::Template("two".into()), 1024).await;
        assert_eq!(host.artifacts(), before, "the same state serves all of them");
        built(server, "four", Source::Template("two".into()), 512).await;
        assert_ne!(host.artifacts(), before);
        for name in ["one", "two", "three", "four"] {
            let sandbox = server.create(CreateSandbox::from_template(name)).await.unwrap();
            server.kill(&sandbox.id).await.unwrap();
        }
        server.delete_template("one").await.unwrap();
        server.create(CreateSandbox::from_template("two")).await.unwrap();
    });
}

#[test]
fn a_template_of_the_hosts_own_is_built_anew_while_the_server_serves() {
    let host = Host::new();
    host.serve(async |server| {
        let standard =
            |force| BuildPlan { force, ..plan(Source::Image(ImageRequest { reference: STANDARD.into(), login: None }), &[]) };
        for (what, force, name, log, is_new) in [
            ("made", false, "mine", "[base] TEMPLATE mine", true),
            ("found", false, "mine", "CACHED [base] TEMPLATE mine", false),
            ("made anew", true, "mine", "[base] TEMPLATE mine", true),
            ("of another name", false, "other", "[base] TEMPLATE other", true),
        ] {
            let before = host.artifacts();
            let running = server.create(base()).await.unwrap().id;
            let place = request(server, name, 512).await;
            start(server, &place, standard(force)).await;
            let info = ended(server, &place).await;
            assert_eq!(info.state, BuildState::Ready, "{what}: {info:?}");
            let said = server.build_log(&place.template_id, &place.build_id).await.unwrap();
            assert!(said.iter().any(|entry| entry.message.starts_with(log)), "{what}: {said:?}");
            assert_eq!(server.sandbox(&running).unwrap().state, SandboxState::Running, "{what}");
            let anything_new = host.artifacts().iter().any(|artifact| !before.contains(artifact));
            assert_eq!(anything_new, is_new, "{what}");
            let id = server.create(CreateSandbox::from_template(name)).await.unwrap().id;
            server.pause(&id).await.unwrap();
            server.resume(&id, PATIENCE).await.unwrap();
            server.kill(&id).await.unwrap();
        }
    });
}

#[test]
fn a_guest_system_that_is_renewed_is_what_is_built_of_from_then_on() {
    let host = Host::new();
    host.serve(async |server| {
        let running = server.create(base()).await.unwrap().id;
        let before = server.template("base").await.unwrap().unwrap();
        let old = server.guests().now();
        let renewed = host.state_dir().with_file_name("renewed");
        fs_err::write(&renewed, vec![0; 4096]).unwrap();
        server.guests().renew(GuestSystem { rootfs: renewed.clone(), rootfs_digest: "renewed".into(), ..(*old).clone() });
        // Nothing changes for what is there.
        assert_eq!(server.template("base").await.unwrap().unwrap().build_id, before.build_id);
        server.pause(&running).await.unwrap();
        server.resume(&running, PATIENCE).await.unwrap();
        server.create(base()).await.unwrap();

        let template = || BuildTemplate { ready: None, ..BuildTemplate::base() };
        let (after, built) = Box::pin(server.ensure_template(template(), &|_| {})).await.unwrap();
        assert!(built && after.build_id != before.build_id, "{after:?}");
        let made_of = |digest: &str| {
            let manifests =
                host.artifacts().into_iter().map(|id| host.state_dir().join("artifacts").join(id).join("manifest.json"));
            // One that nobody needs any more is removed at any time.
            manifests.filter(|path| fs_err::read_to_string(path).is_ok_and(|manifest| manifest.contains(digest))).count()
        };
        assert_eq!((made_of("\"renewed\""), made_of(renewed.to_str().unwrap())), (1, 1));
        let (_, built) = Box::pin(server.ensure_template(template(), &|_| {})).await.unwrap();
        assert!(!built, "it is known for what it is made of");
        let id = server.create(base()).await.unwrap().id;
        server.kill(&id).await.unwrap();
        assert_eq!(server.sandbox(&running).unwrap().state, SandboxState::Running);
    });
}

#[test]
fn two_who_build_the_same_at_once_make_it_once() {
    let host = Host::new();
    host.serve(async |server| {
        let before = host.artifacts().len();
        let standard = plan(Source::Image(ImageRequest { reference: STANDARD.into(), login: None }), &[]);
        let (one, other) = (request(server, "both", 512).await, request(server, "both", 512).await);
        start(server, &one, standard.clone()).await;
        start(server, &other, standard).await;
        let mut known = 0;
        for place in [&one, &other] {
            assert_eq!(ended(server, place).await.state, BuildState::Ready);
            let said = server.build_log(&place.template_id, &place.build_id).await.unwrap();
            known += usize::from(said.iter().any(|entry| entry.message.starts_with("CACHED [finalize]")));
        }
        assert_eq!((host.artifacts().len(), known), (before + 1, 1));
    });
}

#[test]
fn a_start_whose_caller_goes_away_leaves_no_build_that_never_ends() {
    let host = Host::new();
    host.serve(async |server| {
        // Wherever it is cut off: each poll brings it to its next wait.
        for polls in 1..24 {
            let place = request(server, "left", 512).await;
            let mut starting = Box::pin(server.start_build(&place.template_id, &place.build_id, plan(own_image(), &[])));
            for _ in 0..polls {
                if futures::poll!(&mut starting).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(starting);
            let state = ended(server, &place).await.state;
            assert!(matches!(state, BuildState::Waiting | BuildState::Ready), "after {polls}: {state:?}");
        }
    });
}

#[test]
fn what_steps_change_of_a_template_of_the_hosts_own_is_its_sandboxes() {
    let host = Host::new();
    host.serve(async |server| {
        let step = |kind: &str, args: &[&str]| StepSpec {
            kind: kind.into(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..StepSpec::default()
        };
        let standard = plan(Source::Image(ImageRequest { reference: STANDARD.into(), login: None }), &[]);
        let forced =
            |force| BuildPlan { steps: vec![StepSpec { force, ..step("ENV", &["GREETING", "hello"]) }], ..standard.clone() };
        for (what, force, known) in [("made", false, false), ("found", false, true), ("forced by its step", true, false)] {
            let place = request(server, "own", 512).await;
            start(server, &place, forced(force)).await;
            let info = ended(server, &place).await;
            assert_eq!(info.state, BuildState::Ready, "{what}: {info:?}");
            let said = server.build_log(&place.template_id, &place.build_id).await.unwrap();
            assert_eq!(said.iter().any(|entry| entry.message.starts_with("CACHED")), known, "{what}: {said:?}");
            let id = server.create(CreateSandbox::from_template("own")).await.unwrap().id;
            assert_eq!(
                host.memory(&id).identities.last().unwrap().env.get("GREETING").map(String::as_str),
                Some("hello"),
                "{what}"
            );
            server.kill(&id).await.unwrap();
        }
    });
}

#[test]
fn a_template_in_use_is_used_until_the_new_one_is_there() {
    let (host, envd) = Host::with_silent_envd();
    host.serve(async |server| {
        let before = server.template("base").await.unwrap().unwrap();
        let place = request(server, "base", 512).await;
        let silent = BuildPlan { ready: Some("true".into()), force: true, ..plan(own_image(), &[]) };
        start(
            server,
            &place,
            BuildPlan { source: Source::Image(ImageRequest { reference: STANDARD.into(), login: None }), ..silent },
        )
        .await;
        until("the ready command was sent", || envd.was_called()).await;
        let id = server.create(base()).await.unwrap().id;
        assert_eq!(server.template("base").await.unwrap().unwrap().build_id, before.build_id);
        server.kill(&id).await.unwrap();
        assert!(host.engine.crash(&host.engine.live_dirs()[0]));
        assert_eq!(ended(server, &place).await.state, BuildState::Error);
        assert_eq!(server.template("base").await.unwrap().unwrap().build_id, before.build_id, "nor does a failure change it");
        server.create(base()).await.unwrap();
    });
}

#[test]
fn a_build_that_nobody_waits_for_any_more_ends() {
    let (host, envd) = Host::with_silent_envd();
    host.serve(async |server| {
        let build = BuildTemplate { name: "left".into(), ready: Some("true".into()), ..BuildTemplate::base() };
        tokio::select! {
            built = Box::pin(server.build_template(build, &|_| {})) => panic!("{built:?}"),
            () = until("the ready command was sent", || envd.was_called()) => {}
        }
        let [left] = &own_builds(server).await[..] else { panic!("one build") };
        let place = RequestedBuild {
            template_id: left.template_id.clone(),
            build_id: left.id.clone(),
            owner: TeamId::first(),
            name: None,
            tags: Vec::new(),
            public: false,
        };
        let info = ended(server, &place).await;
        assert_eq!(info.reason.unwrap().message, "the build was interrupted; build it again");
        until("its machine has ended", || host.engine.live() == 0).await;
    });
}

#[test]
fn a_template_leaves_as_much_free_disk_as_was_asked_for_or_is_none() {
    let host = Host::new();
    host.serve(async |server| {
        let variable = StepSpec { kind: "ENV".into(), args: vec!["A".into(), "1".into()], ..StepSpec::default() };
        let plans = [
            ("taken as it is", plan(Source::Template("base".into()), &[])),
            ("cut", BuildPlan { steps: vec![variable], ..plan(own_image(), &[]) }),
        ];
        for (what, plan) in plans {
            // Twice: what the first has made is known to the second.
            for _ in 0..2 {
                let ask = async |free: i64| {
                    let request =
                        BuildRequest { name: Some("roomy".into()), min_free_disk_mib: Some(free), ..BuildRequest::default() };
                    let place = server.request_build(&request).await.unwrap();
                    start(server, &place, plan.clone()).await;
                    ended(server, &place).await.reason.map(|reason| (reason.step, reason.message))
                };
                assert_eq!((ask(0).await, ask(5).await), (None, None), "{what}");
                let (step, message) = ask(6).await.unwrap();
                assert_eq!(step, "finalize", "{what}: {message}");
                let told = "the root file system of the template has 5 MiB free, and at least 6 MiB were asked for";
                assert_eq!(message, told, "{what}");
                // What no step could change is refused before the first.
                let (step, message) = ask(9).await.unwrap();
                assert_eq!(step, "base", "{what}: {message}");
                assert_eq!(message, "the disk of the template has 8 MiB, and 9 MiB of it were asked to be free", "{what}");
                assert_eq!(host.engine.live(), 0, "{what}: no machine of a build is left");
            }
        }
        server.create(CreateSandbox::from_template("roomy")).await.unwrap();
    });
}

#[test]
fn a_deletion_whose_caller_goes_away_ends_the_builds_too() {
    let (host, _envd) = Host::with_silent_envd();
    host.serve(async |server| {
        // Wherever it is cut off: each poll brings it to its next wait.
        for polls in 1..16 {
            let place = request(server, "left", 512).await;
            start(server, &place, plan(own_image(), &["true"])).await;
            until("its machine runs", || host.engine.live() == 1).await;
            let mut deleting = Box::pin(server.delete_template(&place.template_id));
            for _ in 0..polls {
                if futures::poll!(&mut deleting).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(deleting);
            until("its machine has ended", || host.engine.live() == 0).await;
            assert!(server.template(&place.template_id).await.unwrap().is_none(), "after {polls}");
        }
    });
}

#[test]
fn a_build_that_is_deleted_leaves_nothing() {
    let (host, envd) = Host::with_silent_envd();
    host.serve(async |server| {
        let before = host.artifacts();
        let place = request(server, "gone", 512).await;
        start(server, &place, plan(Source::Template("base".into()), &["sleep 1000"])).await;
        until("the command was sent", || envd.was_called()).await;
        assert_eq!(host.engine.live(), 1);
        server.delete_template(&place.template_id).await.unwrap();
        assert_eq!(host.engine.live(), 0, "its machine");
        assert!(own_builds(server).await.is_empty(), "its record");
        assert!(server.build(&place.template_id, &place.build_id).await.is_err());
        assert_eq!(host.artifacts(), before, "its states");
        assert_eq!(server.capacity().usage.active.held.memory_mib, 0, "what it had reserved");
    });
}

#[test]
fn a_build_that_a_crash_cuts_off_is_an_error_and_leaves_nothing() {
    let (host, envd) = Host::with_silent_envd();
    let (place, before) = host.crash_after(async |server| {
        let before = host.artifacts();
        let place = request(&server, "cut-off", 512).await;
        start(&server, &place, plan(Source::Template("base".into()), &["sleep 1000"])).await;
        until("the command was sent", || envd.was_called()).await;
        (place, before)
    });
    assert_eq!(host.engine.live(), 1);
    host.serve(async |server| {
        assert_eq!(host.engine.live(), 0, "a machine of no sandbox is swept");
        assert_eq!(host.artifacts(), before, "its states");
        assert_eq!(server.capacity().usage.active.held.memory_mib, 0, "what it had reserved");
        let info = server.build(&place.template_id, &place.build_id).await.unwrap();
        assert_eq!(info.state, BuildState::Error);
        assert!(info.reason.unwrap().message.contains("build it again"));
    });
}

#[test]
fn a_build_whose_server_stops_is_an_error_and_can_be_built_again() {
    let (host, envd) = Host::with_silent_envd();
    let (place, before) = host.serve(async |server| {
        let before = host.artifacts();
        let place = request(server, "stopped", 512).await;
        start(server, &place, plan(Source::Template("base".into()), &["true", "sleep 1000"])).await;
        until("the command was sent", || envd.was_called()).await;
        (place, before)
    });
    host.serve(async |server| {
        let info = server.build(&place.template_id, &place.build_id).await.unwrap();
        assert_eq!(info.state, BuildState::Error);
        assert_eq!(info.reason.unwrap().step, "1");
        assert_eq!(host.artifacts(), before, "its states");
        assert!(server.create(CreateSandbox::from_template("stopped")).await.is_err(), "no template came of it");
        built(server, "stopped", Source::Template("base".into()), 512).await;
    });
}

#[test]
fn a_name_stands_for_what_it_was_built_as() {
    let host = Host::new();
    host.serve(async |server| {
        let first = built(server, "app", own_image(), 512).await;
        server.assign_tags("app", vec!["v1".into()]).await.unwrap();
        let second = built(server, "app", own_image(), 1024).await;
        assert_eq!(first.template_id, second.template_id, "a name that is built again keeps its id");
        let memory = async |name: &str| server.template(name).await.unwrap().unwrap().budget.memory_mib;
        assert_eq!((memory("app").await, memory("app:v1").await), (1024, 512));
        built(server, "app:v1", own_image(), 2048).await;
        assert_eq!((memory("app").await, memory("app:v1").await), (1024, 2048));
        let of_name = server.templates().await.unwrap().into_iter().filter(|t| t.name.as_deref() == Some("app"));
        let of_name: Vec<_> = of_name.map(|template| (template.id, template.aliases)).collect();
        assert_eq!(of_name, [(first.template_id.clone(), vec!["app".to_owned(), "app:v1".to_owned()])], "it is one template");
        assert_eq!((memory("app").await, memory(&format!("{}:v1", first.template_id)).await), (1024, 2048));
    });
}

#[test]
fn what_no_tag_stands_for_any_more_is_gone() {
    let host = Host::new();
    host.serve(async |server| {
        let before = host.artifacts();
        built(server, "app:v1", own_image(), 512).await;
        let kept = host.artifacts();
        assert_ne!(kept, before);
        built(server, "app:v1", Source::Template("base".into()), 512).await;
        let place = built(server, "app:v2", Source::Template("base".into()), 1024).await;
        server.assign_tags("app:v1", vec!["v2".into(), "v3".into()]).await.unwrap();
        let builds = |info: &firkin_runtime::template::TemplateInfo| {
            info.tags.iter().map(|tag| (tag.tag.clone(), tag.build_id.clone())).collect::<Vec<_>>()
        };
        let info = server.template(&place.template_id).await.unwrap().unwrap();
        let [(_, first), (_, second), (_, third)] = &builds(&info)[..] else { panic!("{info:?}") };
        assert!(first == second && second == third, "{info:?}");
        assert_ne!(*first, place.build_id, "the tag moved away from it");
        server.remove_tags(&place.template_id, vec!["v1".into(), "v2".into()]).await.unwrap();
        assert!(server.create(CreateSandbox::from_template("app:v1")).await.is_err());
        server.create(CreateSandbox::from_template("app:v3")).await.unwrap();
    });
}
