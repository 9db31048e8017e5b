//! Signed URLs that name no sandbox, whichever node they come to.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sha2::{Digest as _, Sha256};

use crate::bench::{ADMIN, Answer, Bench, Node};

/// A link to a file, as clients make them of a sandbox's token.
pub(crate) fn link(token: &str, operation: &str) -> String {
    let digest = Sha256::digest(format!("/x:{operation}::{token}"));
    format!("/files?path=/x&signature=v1_{}", STANDARD_NO_PAD.encode(digest).replace('+', "%2B"))
}

/// A sandbox with its token.
async fn create(bench: &Bench, node: &Node) -> (String, String) {
    let made = node.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(201);
    let id = made.text("/sandboxID").to_owned();
    bench.map.home(&id, &node.id, 1);
    (id, made.text("/envdAccessToken").to_owned())
}

/// What whoever bears the link alone is answered.
async fn bear(node: &Node, method: &str, link: &str) -> Answer {
    let request = Request::builder().method(method).uri(link).header("host", node.address.to_string());
    node.answer(request.body(Full::<Bytes>::from("content")).unwrap()).await
}

#[tokio::test]
async fn a_signed_url_without_a_name_leads_to_its_sandbox_through_any_node() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let [a, b, c] = &bench.nodes[..] else { unreachable!() };
    let _unknowing = bench.add_of_another_version("d", 404, r#"{"code":404,"message":"no such route"}"#).await;
    let (first, second) = (create(&bench, a).await, create(&bench, b).await);
    for ((id, token), home) in [(&first, "a"), (&second, "b")] {
        for node in [a, b, c] {
            for (method, operation) in [("GET", "read"), ("POST", "write")] {
                // No guest is behind it: what says so knows which sandbox was meant.
                let answer = bear(node, method, &link(token, operation)).await.expect(502);
                assert_eq!((answer.text("/sandboxId"), answer.header("x-firkin-node")), (id.as_str(), home));
                assert_eq!(answer.header("content-security-policy"), "sandbox", "a link led to it");
            }
        }
    }
    // It has gone to another node: the one that knows its token still has an older life of it than was heard of, and answers for it no more.
    let (id, token) = create(&bench, a).await;
    bench.map.home(&id, &c.id, a.runtime.epoch(&id.parse().unwrap()).unwrap() + 4);
    b.answer(b.get_guest(&id, 80, "/")).await;
    let gone = bear(b, "GET", &link(&token, "read")).await.expect(502);
    assert_eq!(gone.header("x-firkin-node"), "c", "{gone:?}");
    bench.stop().await;
}

#[tokio::test]
async fn a_signature_of_nobody_is_refused_and_one_of_a_node_that_is_away_is_not_called_wrong() {
    let mut bench = Bench::start(&["a", "b"]).await;
    let (_, token) = create(&bench, &bench.nodes[0]).await;
    let b = &bench.nodes[1];
    let wrong = bear(b, "GET", &link("nobody's", "read")).await.expect(401);
    assert_eq!(wrong.text("/message"), "invalid signature");
    bear(b, "POST", &link(&token, "read")).await.expect(401);
    // Only nodes ask each other for it.
    for admin in [None, Some(ADMIN)] {
        let mut request = b.request("GET", &link(&token, "read").replace("/files?", "/admin/signer?method=GET&"), "");
        request.headers_mut().extend(admin.map(|admin| (http::HeaderName::from_static("x-admin-token"), admin.parse().unwrap())));
        let refused = b.answer(request).await;
        assert!(matches!(refused.status, 401 | 403) && refused.body.get("sandboxID").is_none(), "{refused:?}");
    }
    bench.nodes.remove(0).stop().await;
    let away = bear(&bench.nodes[0], "GET", &link(&token, "read")).await.expect(503);
    assert_eq!((away.text("/error_code"), away.header("retry-after")), ("node_away", "5"));
    assert!(away.text("/message").contains("node `a`"), "{away:?}");
    bench.stop().await;
}
