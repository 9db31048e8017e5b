//! Who came from whom, as long as it exists.

use std::time::Duration;

use firkin_runtime::{
    lineage::{LineageKind, LineageNode},
    sandbox::{CreateSandbox, SandboxState},
};

use crate::bench::{Host, base};

/// A tree as nested text: kind and id of each node, its children in braces.
fn text(nodes: &[LineageNode]) -> String {
    let one = |node: &LineageNode| {
        let letter = match node.kind {
            LineageKind::Template => 't',
            LineageKind::Snapshot => 's',
            LineageKind::Sandbox => 'b',
        };
        format!("{letter}:{}{{{}}}", node.id, text(&node.children))
    };
    nodes.iter().map(one).collect()
}

#[test]
fn a_tree_shows_what_exists_below_what_it_came_from() {
    let host = Host::new();
    host.serve(async |server| {
        let template = server.template("base").await.unwrap().unwrap().id;
        let first = server.create(base()).await.unwrap().id;
        let fork = server.fork(&first, 1, Duration::from_secs(60)).await.unwrap().remove(0).unwrap().id;
        let info = server.snapshot(&first, Some("mine".into())).await.unwrap();
        let child = server.create(CreateSandbox { template: info.snapshot_id.clone(), ..base() }).await.unwrap().id;
        let snapshot = server.template("mine").await.unwrap().unwrap().id;
        let tree = server.lineage().await.unwrap();
        assert_eq!(text(&tree), format!("t:{template}{{b:{first}{{b:{fork}{{}}s:{snapshot}{{b:{child}{{}}}}}}}}"),);
        assert_eq!(tree[0].names, ["firkin/base:default"]);
        assert_eq!(tree[0].children[0].state, Some(SandboxState::Running));

        // What came from something that is gone hangs where that had hung.
        server.kill(&first).await.unwrap();
        assert_eq!(text(&server.lineage().await.unwrap()), format!("t:{template}{{b:{fork}{{}}s:{snapshot}{{b:{child}{{}}}}}}"),);
        server.kill(&child).await.unwrap();
        server.delete_template("mine").await.unwrap();
        assert_eq!(text(&server.lineage().await.unwrap()), format!("t:{template}{{b:{fork}{{}}}}"));
    });
}

#[test]
fn every_state_of_a_sandbox_says_why_it_was_taken() {
    let host = Host::new();
    host.serve(async |server| {
        let of = |artifact: &str| {
            let manifest = fs_err::read(host.state_dir().join("artifacts").join(artifact).join("manifest.json")).unwrap();
            let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            manifest["reason"].as_str().map(str::to_owned)
        };
        let before = host.artifacts();
        assert_eq!(before.iter().filter_map(|artifact| of(artifact)).count(), 0, "a template was not taken of a sandbox");
        let id = server.create(base()).await.unwrap().id;
        server.snapshot(&id, None).await.unwrap();
        server.pause(&id).await.unwrap();
        let mut reasons: Vec<String> = host.artifacts().iter().filter_map(|artifact| of(artifact)).collect();
        reasons.sort();
        assert_eq!(reasons, ["asked", "snapshot"]);
    });
}
