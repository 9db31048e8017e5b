//! What each restore gives a guest, over many restores of one state: nothing that is a sandbox's own is given twice.

use std::{collections::BTreeSet, time::Duration};

use firkin_runtime::sandbox::{CreateSandbox, SandboxId};

use crate::bench::{Given, Host, base};

const MINUTE: Duration = Duration::from_secs(60);
const FORKS: u32 = 24;

/// What the guest was given last.
fn last(host: &Host, id: &SandboxId) -> Given {
    host.memory(id).identities.last().unwrap().clone()
}

/// Every machine id that it was given under its own name.
fn machine_ids(host: &Host, id: &SandboxId) -> Vec<String> {
    let given = host.memory(id).identities;
    given.into_iter().filter(|given| given.sandbox_id == id.as_str()).filter_map(|given| given.machine_id).collect()
}

fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> usize {
    values.collect::<BTreeSet<_>>().len()
}

#[test]
fn many_forks_share_nothing_that_is_their_own() {
    let host = Host::new();
    host.serve(async |server| {
        let env = [("KEPT".to_owned(), "yes".to_owned())].into();
        let source = server.create(CreateSandbox { env, ..base() }).await.unwrap().id;
        let forks = server.fork(&source, FORKS, MINUTE).await.unwrap();
        let ids: Vec<SandboxId> = forks.into_iter().map(|fork| fork.unwrap().id).chain([source.clone()]).collect();
        let given: Vec<Given> = ids.iter().map(|id| last(&host, id)).collect();
        assert_eq!(distinct(given.iter().map(|given| given.entropy.as_str())), ids.len(), "seeds");
        assert_eq!(distinct(given.iter().filter_map(|given| given.access_token.as_deref())), ids.len(), "tokens");
        // The source goes on and keeps the machine id that it was created with.
        let machines: Vec<String> = ids.iter().flat_map(|id| machine_ids(&host, id)).collect();
        assert_eq!((machines.len(), distinct(machines.iter().map(String::as_str))), (ids.len(), ids.len()), "machine ids");
        for (id, given) in ids.iter().zip(&given) {
            assert_eq!(given.sandbox_id, id.as_str());
            assert_eq!(given.env["KEPT"], "yes");
        }
    });
}

#[test]
fn a_token_leads_to_its_sandbox_for_as_long_as_that_is_there() {
    let host = Host::new();
    let (kept, gone) = host.serve(async |server| {
        let secure = CreateSandbox { secure: true, ..base() };
        let (kept, killed) = (server.create(secure.clone()).await.unwrap(), server.create(secure).await.unwrap());
        let fork = server.fork(&kept.id, 1, MINUTE).await.unwrap().remove(0).unwrap();
        for sandbox in [&kept, &killed, &fork] {
            assert_eq!(server.with_token(sandbox.envd_access_token.as_deref().unwrap()).as_ref(), Some(&sandbox.id));
        }
        server.pause(&kept.id).await.unwrap();
        server.kill(&killed.id).await.unwrap();
        server.kill(&fork.id).await.unwrap();
        for token in [killed.envd_access_token.as_deref().unwrap(), fork.envd_access_token.as_deref().unwrap(), "", "nobody's"] {
            assert_eq!(server.with_token(token), None);
        }
        (kept, killed)
    });
    host.serve(async |server| {
        let token = kept.envd_access_token.as_deref().unwrap();
        assert_eq!(server.with_token(token).as_ref(), Some(&kept.id), "also of one that a new server finds");
        server.connect(&kept.id, MINUTE).await.unwrap();
        assert_eq!(server.with_token(token).as_ref(), Some(&kept.id));
        assert_eq!(server.with_token(gone.envd_access_token.as_deref().unwrap()), None);
    });
}

#[test]
fn a_sandbox_that_comes_back_is_the_same_machine_with_fresh_randomness() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        let token = last(&host, &id).access_token;
        for _ in 0..4 {
            server.pause(&id).await.unwrap();
            server.connect(&id, MINUTE).await.unwrap();
        }
        let given = host.memory(&id).identities;
        // Within one life it may be told again, seed and all, when its answer was late.
        let lives: BTreeSet<(&str, u64)> = given.iter().map(|given| (given.entropy.as_str(), given.epoch)).collect();
        assert_eq!(distinct(given.iter().map(|given| given.entropy.as_str())), lives.len(), "no two lives share a seed");
        assert_eq!(machine_ids(&host, &id).len(), 1, "it keeps its machine id");
        let own = || given.iter().filter(|given| given.sandbox_id == id.as_str());
        assert!(own().count() >= 5 && own().all(|given| given.access_token == token), "and its token");
        assert!(given[0].sandbox_id.starts_with("template-"), "memory reaches back to the template's own");
    });
}
