//! The page of a cluster's nodes, as a browser gets it from one of them.

use bytes::Bytes;
use firkin_postgres::NodeState;
use firkin_runtime::{capacity::TeamQuota, runtime::NewKey, store::KeyScope, team::TeamId};
use http::Request;
use http_body_util::Full;

use crate::{
    bench::Answer,
    joint::{Choice, Joint, Node, until},
};

/// A page as whoever signs in with this key gets it.
async fn page(of: &Node, key: &str, path: &str) -> Answer {
    let request = |method: &str, path: &str| {
        let (host, origin) = (of.address.to_string(), format!("http://{}", of.address));
        Request::builder().method(method).uri(path).header("host", host).header("origin", origin).header("accept", "text/html")
    };
    let form = request("POST", "/ui/sign-in").header("content-type", "application/x-www-form-urlencoded");
    let entered = of.answer(form.body(Full::from(format!("key={key}"))).unwrap()).await.expect(303);
    let cookie = entered.header("set-cookie").split(';').next().unwrap().to_owned();
    of.answer(request("GET", path).header("cookie", cookie).body(Full::<Bytes>::default()).unwrap()).await
}

/// The row of a node, without the rest of the page.
fn row<'a>(page: &'a Answer, name: &str) -> &'a str {
    let page = page.body.as_str().unwrap();
    let row = page.split("<tr>").find(|row| row.starts_with(&format!("<th class=\"whole\" scope=\"row\">{name}")));
    row.unwrap_or_else(|| panic!("no node `{name}`: {page}"))
}

#[tokio::test]
async fn the_page_of_one_node_names_all_of_them() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let b = joint.start("b", Choice::default()).await;
    a.create().await;
    b.runtime.hear_of_keys().await.unwrap();
    joint.set_state(&a.id, NodeState::Cordoned, &[&a, &b]).await;
    // What a node has is heard with a renewal.
    until("B hears that a sandbox runs on A", async || {
        let listed = firkin_cluster::Members::listed(&*b.records);
        listed.nodes.iter().any(|node| node.name == "a" && node.report.as_ref().is_some_and(|report| report.running == 1))
    })
    .await;
    let shown = page(&b, &joint.key, "/ui/nodes").await.expect(200);
    assert!(shown.body.as_str().unwrap().contains("<a href=\"/ui/nodes\" aria-current=\"page\">Nodes</a>"));
    let (of_a, of_b) = (row(&shown, "a"), row(&shown, "b"));
    assert!(of_a.contains(">cordoned<") && of_a.contains("firkin node uncordon a<") && !of_a.contains("this one"), "{of_a}");
    assert!(
        of_a.contains("<td class=\"number\">1</td>") && of_a.contains(" left</td>") && of_a.contains("<td>test</td>"),
        "{of_a}"
    );
    assert!(of_b.contains(">ready<") && of_b.contains("firkin node cordon b<") && of_b.contains("this one"), "{of_b}");
    // It is of the host, as its own team sees it.
    let team: TeamId = "b".parse().unwrap();
    b.runtime.add_team(team.clone(), None, TeamQuota::default()).await.unwrap();
    let key = NewKey { name: String::new(), scope: KeyScope::Full, expires_at: None };
    let (_, other) = b.runtime.add_key(&team, key).await.unwrap();
    for path in ["/ui/nodes", "/ui/nodes/now"] {
        page(&b, &other, path).await.expect(403);
    }
    assert!(!page(&b, &other, "/ui/sandboxes").await.expect(200).body.as_str().unwrap().contains("/ui/nodes"));
    joint.end([a, b]).await;
}
