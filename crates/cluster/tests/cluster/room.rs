//! A node that is full, and others that are not.

use crate::{
    bench::Answer,
    joint::{Choice, Joint, Node, fill, hear},
};

async fn resume(joint: &Joint, node: &Node, id: &str) -> Answer {
    node.call(&joint.key, ("POST", &format!("/sandboxes/{id}/resume"), r#"{"timeout":600}"#)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_where_there_is_no_room_goes_on_where_there_is() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let b = joint.start("b", Choice::default()).await;
    hear(&[&a, &b]).await;
    let ids = [a.create().await, a.create().await, a.create().await];
    for id in &ids {
        a.runtime.pause(&id.parse().unwrap()).await.unwrap();
    }
    let made = fill(&a).await;
    // Whoever is no user of it moves nothing.
    let mut stranger = http::Request::post(format!("/sandboxes/{}/resume", ids[0])).header("host", a.address.to_string());
    stranger = stranger.header("content-type", "application/json");
    a.answer(stranger.body("{}".to_owned().into()).unwrap()).await.expect(401);
    assert!(a.runtime.has(&ids[0].parse().unwrap()), "it is where it was");
    // Wherever it is asked for.
    for (node, id) in [(&a, &ids[0]), (&b, &ids[1])] {
        assert_eq!(resume(&joint, node, id).await.expect(201).header("x-firkin-node"), "b");
        assert!(joint.runs_on(&b, id).await);
    }
    assert_eq!(a.runtime.capacity().requests.timed_out, 0, "nobody waited for room where there is none");
    // Where there is none anywhere, it stays and is refused so.
    fill(&b).await;
    resume(&joint, &a, &ids[2]).await.expect(503);
    assert!(a.runtime.has(&ids[2].parse().unwrap()) || b.runtime.has(&ids[2].parse().unwrap()));
    a.runtime.kill(&made[0].parse().unwrap()).await.unwrap();
    hear(&[&a, &b]).await;
    resume(&joint, &a, &ids[2]).await.expect(201);
    joint.end([a, b]).await;
}
