//! Lists of sandboxes over HTTP: filters, order, pages.

use crate::bench::{Answer, Bench, query};

fn ids(answer: &Answer) -> Vec<String> {
    answer.body.as_array().unwrap().iter().map(|sandbox| sandbox["sandboxID"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn filters_choose_and_pages_follow() {
    let bench = Bench::start().await;
    let mut made = Vec::new();
    for n in 0..5 {
        made.push(bench.create(&format!(r#","metadata":{{"n":"{n}","odd b&":"{}"}}"#, n % 2)).await);
    }
    bench.call("POST", &format!("/sandboxes/{}/pause", made[0]), "").await.expect(204);
    let odd = query(&[("metadata", "odd%2520b%2526=1")]);
    let odd_once_quoted = query(&[("metadata", &query(&[("odd%20b%26", "1")]))]);
    // Its own time, given back as it was said.
    let last = bench.call("GET", &format!("/sandboxes/{}", made[4]), "").await.expect(200);
    let from_the_last = query(&[("startedAfter", last.text("/startedAt"))]);
    let newest_first = |wanted: &[usize]| wanted.iter().map(|&n| made[n].clone()).collect::<Vec<_>>();
    for (query, expected, running) in [
        (String::new(), newest_first(&[4, 3, 2, 1, 0]), 4),
        ("order=asc".into(), newest_first(&[0, 1, 2, 3, 4]), 4),
        ("state=running".into(), newest_first(&[4, 3, 2, 1]), 4),
        ("state=paused".into(), newest_first(&[0]), 4),
        ("state=running,paused".into(), newest_first(&[4, 3, 2, 1, 0]), 4),
        (odd, newest_first(&[3, 1]), 2),
        (odd_once_quoted, newest_first(&[3, 1]), 2),
        ("template=base".into(), newest_first(&[4, 3, 2, 1, 0]), 4),
        ("template=none".into(), vec![], 0),
        ("startedAfter=2100-01-01T00:00:00Z".into(), vec![], 0),
        (from_the_last, newest_first(&[4]), 1),
    ] {
        let answer = bench.call("GET", &format!("/v2/sandboxes?{query}"), "").await.expect(200);
        assert_eq!(ids(&answer), expected, "{query}");
        assert_eq!(answer.headers["x-total-running"], running.to_string().as_str(), "{query}");
    }
    assert_eq!(
        ids(&bench.call("GET", "/sandboxes", "").await.expect(200)),
        newest_first(&[4, 3, 2, 1]),
        "v1 shows no paused ones"
    );
    for order in ["asc", "desc"] {
        let whole = ids(&bench.call("GET", &format!("/v2/sandboxes?order={order}"), "").await);
        let (mut seen, mut next) = (Vec::new(), String::new());
        loop {
            let answer = bench.call("GET", &format!("/v2/sandboxes?order={order}&limit=2{next}"), "").await.expect(200);
            seen.extend(ids(&answer));
            match answer.headers.get("x-next-token") {
                Some(token) => next = format!("&nextToken={}", token.to_str().unwrap()),
                None => break,
            }
        }
        assert_eq!(seen, whole, "{order}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn an_item_has_every_field_that_clients_demand() {
    let bench = Bench::start().await;
    bench.create("").await;
    let listed = bench.call("GET", "/v2/sandboxes", "").await.expect(200);
    for key in [
        "templateID",
        "sandboxID",
        "clientID",
        "startedAt",
        "endAt",
        "cpuCount",
        "memoryMB",
        "diskSizeMB",
        "state",
        "envdVersion",
    ] {
        assert!(listed.body[0].get(key).is_some(), "`{key}` is missing in {listed:?}");
    }
    bench.stop().await;
}
