//! More creates at once than there is room for, through all nodes: nobody holds more than it has, nobody fails for whom there is room, and who fails is
//! told why.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use firkin_runtime::{capacity::ResourceBudget, owner::OnExit, sandbox::SandboxState};
use futures::future::join_all;

use crate::{
    bench::Answer,
    joint::{Choice, Joint, Node},
};

/// Sandboxes that a node has room for.
const ROOM: u32 = 4;

const NODES: usize = 3;

async fn create(joint: &Joint, edge: &Node) -> Answer {
    edge.call(&joint.key, ("POST", "/v2/sandboxes", r#"{"templateID":"base","timeout":3600}"#)).await
}

/// Asserts that a node holds what its sandboxes were promised, and no more than it has.
fn demand_exact(node: &Node) {
    let view = node.runtime.capacity();
    let mut promised = ResourceBudget::default();
    let running = node.runtime.sandboxes().into_iter().filter(|sandbox| sandbox.state == SandboxState::Running);
    running.for_each(|sandbox| promised += sandbox.budget);
    assert_eq!(view.usage.total(), promised);
    assert!(view.usage.total().cpus <= view.capacity.cpus, "{view:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_twice_the_capacity_through_three_edges_fills_each_node_and_no_more() {
    let full = Choice { cpus: Some(ROOM), ..Choice::default() };
    let Some((joint, a)) = Joint::found(full).await else { return };
    let nodes = [a, joint.start("b", full).await, joint.start("c", full).await];
    for node in &nodes {
        node.records.hear().await.unwrap();
    }
    // Each node is looked at all the while.
    let is_over = Arc::new(AtomicBool::new(false));
    let watching: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (runtime, is_over) = (node.runtime.clone(), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut most = 0;
                while !is_over.load(Ordering::SeqCst) {
                    most = most.max(runtime.capacity().usage.total().cpus);
                    tokio::task::yield_now().await;
                }
                most
            })
        })
        .collect();
    let room = ROOM as usize * NODES;
    let answers = join_all((0..2 * room).map(|turn| create(&joint, &nodes[turn % NODES]))).await;
    is_over.store(true, Ordering::SeqCst);
    for watched in watching {
        let most = watched.await.unwrap();
        assert_eq!(most, ROOM, "a node is filled, and never holds more than it has");
    }
    let (made, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused.len()), (room, room), "none fails for whom there is room");
    for refused in refused {
        assert_eq!(refused.status, 503, "{refused:?}");
        let code = refused.text("/error_code");
        assert!(["sandbox_capacity_unavailable", "sandbox_placement_timeout"].contains(&code), "{refused:?}");
        assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    }
    nodes.iter().for_each(demand_exact);
    // Where one ends, one more is made, whoever is asked.
    for edge in &nodes {
        let ended = nodes[1].runtime.sandboxes()[0].id.clone();
        edge.call(&joint.key, ("DELETE", &format!("/sandboxes/{ended}"), "")).await.expect(204);
        let made = create(&joint, edge).await.expect(201);
        assert_eq!(made.header("x-firkin-node"), "b", "{:?}", made.header("x-firkin-placement"));
    }
    nodes.iter().for_each(demand_exact);
    for node in nodes {
        node.stop(OnExit::Kill).await;
    }
    joint.end([]).await;
}
