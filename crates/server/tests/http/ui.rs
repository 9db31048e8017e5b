//! The dashboard as a browser meets it: who is let in, what a form needs, and that nothing of a user's becomes markup.

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::Full;

use crate::bench::{Answer, Bench, DEADLINE, query};

/// A browser with one cookie.
pub(crate) struct Browser<'a> {
    bench: &'a Bench,
    pub(crate) cookie: String,
    pub(crate) token: String,
}

/// What a browser says of itself when somebody follows a link.
const ACCEPT: &str = "text/html,application/xhtml+xml,*/*;q=0.8";

fn request(bench: &Bench, method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request =
        Request::builder().method(method).uri(path).header("host", bench.address.to_string()).header("accept", ACCEPT);
    if method == "POST" {
        request = request.header("origin", format!("http://{}", bench.address));
        request = request.header("content-type", "application/x-www-form-urlencoded");
    }
    request.body(Full::from(body.to_owned())).unwrap()
}

fn text(answer: &Answer) -> &str {
    answer.body.as_str().unwrap_or_default()
}

impl<'a> Browser<'a> {
    /// Signs in with this key.
    pub(crate) async fn enter(bench: &'a Bench, key: &str) -> Self {
        let entered = bench.answer(request(bench, "POST", "/ui/sign-in", &query(&[("key", key)]))).await.expect(303);
        let cookie = entered.headers["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.contains("; HttpOnly; SameSite=Strict; Path=/ui; Max-Age="), "{cookie}");
        let mut browser = Self { bench, cookie: cookie.split(';').next().unwrap().to_owned(), token: String::new() };
        let page = browser.get("/ui/sandboxes").await.expect(200);
        let token = text(&page).split("name=\"token\" value=\"").nth(1).unwrap();
        browser.token = token.split('"').next().unwrap().to_owned();
        browser
    }

    fn with_cookie(&self, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        request.headers_mut().insert("cookie", self.cookie.parse().unwrap());
        request
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.bench.answer(self.with_cookie(request(self.bench, "GET", path, ""))).await
    }

    /// Sends a form as a page of this session has it.
    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = query(&[&[("token", self.token.as_str())], fields].concat());
        self.bench.answer(self.with_cookie(request(self.bench, "POST", path, &body))).await
    }
}

/// Every page says what a browser may make of it.
fn is_dressed(headers: &HeaderMap) {
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(headers["x-content-type-options"] == "nosniff" && headers["referrer-policy"] == "same-origin");
    assert!(!headers.contains_key("access-control-allow-origin"), "no other page may read it");
}

#[tokio::test]
async fn a_browser_is_led_to_the_dashboard_and_programs_are_not() {
    let bench = Bench::start().await;
    let led = bench.answer(request(&bench, "GET", "/", "")).await.expect(303);
    assert_eq!(led.headers["location"], "/ui");
    let told = bench.call("GET", "/", "").await.expect(404);
    assert_eq!(told.text("/message"), "no route `/`");
    assert_eq!(bench.answer(request(&bench, "GET", "/ui", "")).await.expect(303).headers["location"], "/ui/sandboxes");
    let out = bench.answer(request(&bench, "GET", "/ui/sandboxes/iabc?x=1", "")).await.expect(303);
    assert_eq!(out.headers["location"], "/ui/sign-in?next=%2Fui%2Fsandboxes%2Fiabc%3Fx%3D1");
    let page = bench.answer(request(&bench, "GET", "/ui/sign-in", "")).await.expect(200);
    is_dressed(&page.headers);
    let style = text(&page).split("href=\"/ui/assets/").nth(1).unwrap().split('"').next().unwrap();
    let style = bench.answer(request(&bench, "GET", &format!("/ui/assets/{style}"), "")).await.expect(200);
    assert!(
        style.headers["content-type"] == "text/css; charset=utf-8"
            && style.headers["cache-control"].to_str().unwrap().contains("immutable")
    );
    bench.answer(request(&bench, "GET", "/ui/assets/none.css", "")).await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn a_session_lasts_as_long_as_its_key_and_no_longer() {
    let bench = Bench::start().await;
    for key in ["", "e2b_0", "admin", &"e".repeat(2000)] {
        let refused = bench.answer(request(&bench, "POST", "/ui/sign-in", &query(&[("key", key)]))).await.expect(401);
        assert!(!refused.headers.contains_key("set-cookie") && text(&refused).contains("not valid"));
    }
    // Nobody has shown anything yet, so little is read; and many fields are no form of ours.
    bench.answer(request(&bench, "POST", "/ui/sign-in", &query(&[("key", &"e".repeat(5000))]))).await.expect(413);
    bench.answer(request(&bench, "POST", "/ui/sign-in", &"&a".repeat(2000))).await.expect(400);
    let browser = Browser::enter(&bench, &bench.key).await;
    let other = Browser::enter(&bench, &bench.key).await;
    assert!(browser.cookie != other.cookie && browser.token != other.token);
    assert_eq!(other.post("/ui/sign-out", &[]).await.expect(303).headers["location"], "/ui/sign-in");
    other.get("/ui/sandboxes").await.expect(303);
    browser.get("/ui/sandboxes").await.expect(200);
    let keys = bench.runtime.keys(None).await.unwrap();
    bench.runtime.revoke_key(keys[0].id.as_str()).await.unwrap();
    browser.get("/ui/sandboxes").await.expect(303);
    browser.post("/ui/sandboxes/bulk", &[("action", "kill")]).await.expect(401);
    bench.stop().await;
}

#[tokio::test]
async fn sandboxes_are_made_and_used_by_forms() {
    let bench = Bench::start().await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let fields = [("template", "base"), ("minutes", "5"), ("then", "pause"), ("metadata", "job=one")];
    let made = browser.post("/ui/sandboxes", &fields).await.expect(303);
    let page = made.headers["location"].to_str().unwrap().to_owned();
    let id = page.strip_prefix("/ui/sandboxes/").unwrap();
    let act = async |action: &str, fields: &[(&str, &str)]| {
        let done = browser.post(&format!("{page}/{action}"), fields).await.expect(303);
        done.headers["location"].to_str().unwrap().to_owned()
    };
    assert_eq!(act("pause", &[]).await, page);
    assert!(text(&browser.get(&page).await.expect(200)).contains("Paused."));
    assert!(!text(&browser.get(&page).await).contains("Paused."), "it is said once");
    let refused = browser.post(&format!("{page}/pause"), &[]).await.expect(409);
    is_dressed(&refused.headers);
    assert!(text(&refused).contains(&format!("href=\"{page}\"")), "the way back is there");
    act("resume", &[]).await;
    act("extend", &[("minutes", "60")]).await;
    act("snapshot", &[("name", "kept")]).await;
    act("rollback", &[("snapshot", "kept")]).await;
    let child = act("fork", &[]).await;
    let overview = text(&browser.get(&page).await.expect(200)).to_owned();
    assert!(overview.contains(&child) && overview.contains("job"), "what came from it, and its labels");
    let rows = browser.get("/ui/sandboxes/rows?q=job%3Done").await.expect(200);
    assert_eq!(rows.body["found"], 2, "{:?}", rows.body);
    let tag = rows.headers["etag"].to_str().unwrap().to_owned();
    let mut again = browser.with_cookie(request(&bench, "GET", "/ui/sandboxes/rows?q=job%3Done", ""));
    again.headers_mut().insert("if-none-match", tag.parse().unwrap());
    bench.answer(again).await.expect(304);
    assert_eq!(browser.get("/ui/sandboxes/rows?q=job%3Dtwo").await.body["found"], 0);
    browser.post("/ui/sandboxes/bulk", &[("action", "pause"), ("id", id)]).await.expect(303);
    assert!(text(&browser.get("/ui/sandboxes").await).contains("1 of 1 sandboxes paused."));
    assert_eq!(act("kill", &[]).await, "/ui/sandboxes");
    browser.get(&page).await.expect(404);
    bench.stop().await;
}

/// Names and values that would be markup, if anything took them for it.
const MARKUP: &str = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'";

#[tokio::test]
async fn nothing_that_users_wrote_becomes_markup() {
    let bench = Bench::start().await;
    let body = serde_json::json!({ "templateID": "base", "metadata": { MARKUP: MARKUP }, "envVars": { "A<u>": "secret-value" } });
    let made = bench.call("POST", "/v2/sandboxes", &body.to_string()).await.expect(201);
    let id = made.text("/sandboxID");
    let browser = Browser::enter(&bench, &bench.key).await;
    let search = format!("/ui/sandboxes?{}", query(&[("q", MARKUP), ("state", MARKUP)]));
    for path in ["/ui/sandboxes", &search, &format!("/ui/sandboxes/{id}"), &format!("/ui/sandboxes/{id}/overview")] {
        let page = browser.get(path).await.expect(200);
        let page = text(&page);
        assert!(!page.contains("<script>") && !page.contains("<img") && !page.contains("<u>"), "{path}: {page}");
        assert!(!page.contains("secret-value"), "values of an environment are not shown");
    }
    let refused = browser.post("/ui/sandboxes", &[("template", MARKUP), ("minutes", "5"), ("then", "kill")]).await;
    assert!(refused.status >= 400 && !text(&refused).contains("<script>"), "{refused:?}");
    let refused = browser.get("/ui/sandboxes/%3Cscript%3E").await.expect(400);
    assert!(!text(&refused).contains("<script>"), "{refused:?}");
    let next = format!("/ui/sign-in?{}", query(&[("next", &format!("/ui/{MARKUP}"))]));
    assert!(!text(&bench.answer(request(&bench, "GET", &next, "")).await).contains("alert"));
    bench.stop().await;
}

#[tokio::test]
async fn what_a_page_of_elsewhere_makes_a_browser_ask_changes_nothing() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let path = format!("/ui/sandboxes/{id}/kill");
    let good = query(&[("token", browser.token.as_str())]);
    let own = format!("http://{}", bench.address);
    let guest = format!("http://3000-{id}.localhost:{}", bench.address.port());
    for (origin, body) in [
        (None, good.as_str()),
        (Some("null"), &good),
        (Some("http://evil.example"), &good),
        (Some(guest.as_str()), &good),
        (Some(own.as_str()), ""),
        (Some(own.as_str()), "token=0"),
    ] {
        let mut forged = browser.with_cookie(request(&bench, "POST", &path, body));
        forged.headers_mut().remove("origin");
        if let Some(origin) = origin {
            forged.headers_mut().insert("origin", origin.parse().unwrap());
        }
        bench.answer(forged).await.expect(403);
    }
    // Forms of other types are what pages of elsewhere send without asking first.
    let mut plain = browser.with_cookie(request(&bench, "POST", &path, &good));
    plain.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    bench.answer(plain).await.expect(400);
    // And nobody signs somebody else in.
    let mut forged = request(&bench, "POST", "/ui/sign-in", &query(&[("key", &bench.key)]));
    forged.headers_mut().insert("origin", "http://evil.example".parse().unwrap());
    bench.answer(forged).await.expect(403);
    // A key opens no page, and a cookie no route of programs.
    let mut keyed = request(&bench, "POST", &path, "");
    keyed.headers_mut().insert("x-api-key", bench.key.parse().unwrap());
    bench.answer(keyed).await.expect(401);
    bench.answer(browser.with_cookie(request(&bench, "DELETE", &format!("/sandboxes/{id}"), ""))).await.expect(401);
    bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    bench.stop().await;
}

#[tokio::test]
async fn the_dashboard_answers_under_names_of_ours_only() {
    let bench = Bench::start().await;
    let browser = Browser::enter(&bench, &bench.key).await;
    for path in ["/ui", "/ui/sign-in", "/ui/sandboxes", "/ui/assets/x"] {
        let mut rebound = browser.with_cookie(request(&bench, "GET", path, ""));
        rebound.headers_mut().insert("host", "evil.example:3000".parse().unwrap());
        bench.answer(rebound).await.expect(421);
        let mut keyed = browser.with_cookie(request(&bench, "GET", path, ""));
        keyed.headers_mut().insert("host", "evil.example".parse().unwrap());
        keyed.headers_mut().insert("x-api-key", bench.key.parse().unwrap());
        bench.answer(keyed).await.expect(421);
    }
    bench.stop().await;
}

#[tokio::test]
async fn cookies_that_nobody_gave_are_no_session_however_large() {
    let bench = Bench::start().await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let tossed = format!("{}; firkin_ui={}", browser.cookie, "0".repeat(64));
    let many = "a=b; ".repeat(4000);
    for cookie in [&tossed, &many, "firkin_ui=", &format!("firkin_ui={}", "x".repeat(20_000))] {
        let mut shown = request(&bench, "GET", "/ui/sandboxes", "");
        shown.headers_mut().insert("cookie", cookie.parse().unwrap());
        bench.answer(shown).await.expect(303);
    }
    // Larger than a head may be, it is not even read.
    let mut huge = request(&bench, "GET", "/ui/sandboxes", "");
    huge.headers_mut().insert("cookie", "a".repeat(1 << 20).parse().unwrap());
    let stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(huge).await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
    browser.get("/ui/sandboxes").await.expect(200);
    bench.stop().await;
}

#[tokio::test]
async fn a_key_alone_administers_nothing() {
    let bench = Bench::start().await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let new_key = [("team", "firkin"), ("scope", "read"), ("name", "<u>mine")];
    let changes = [("/ui/teams", &[("team", "b")][..]), ("/ui/teams/keys", &new_key), ("/ui/teams/quota", &[("team", "firkin")])];
    for (path, fields) in changes {
        browser.post(path, fields).await.expect(403);
    }
    assert!(!text(&browser.get("/ui/teams").await.expect(200)).contains("key_"), "nor does it see who may");
    browser.post("/ui/teams/unlock", &[("admin", "wrong")]).await.expect(401);
    browser.post("/ui/teams/unlock", &[("admin", crate::bench::ADMIN)]).await.expect(303);
    assert_eq!(browser.post("/ui/teams/keys", &new_key).await.expect(303).headers["location"], "/ui/teams");
    let made = browser.get("/ui/teams").await.expect(200);
    let key = text(&made).split("<code>").nth(2).unwrap().split('<').next().unwrap();
    assert!(!text(&made).contains("<u>") && !text(&browser.get("/ui/teams").await).contains(key), "it is told once");
    Browser::enter(&bench, key).await;
    browser.post("/ui/teams/quota", &[("team", "firkin"), ("running", "3"), ("cpus", "")]).await.expect(303);
    let quota = bench.runtime.teams().await.unwrap()[0].quota;
    assert_eq!((quota.running, quota.cpus), (Some(3), None));
    // Another session of the same key has shown nothing.
    let other = Browser::enter(&bench, &bench.key).await;
    other.post("/ui/teams", &[("team", "c")]).await.expect(403);
    bench.stop().await;
}

#[tokio::test]
async fn under_https_a_session_is_of_this_very_host_and_no_sandbox_is_shown_it() {
    let mut bench = Bench::start().await;
    let guest = bench.hear_as_envd();
    let encrypted = |mut request: Request<Full<Bytes>>| {
        request.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
        request
    };
    let entered = encrypted(request(&bench, "POST", "/ui/sign-in", &query(&[("key", &bench.key)])));
    let entered = bench.answer(entered).await.expect(303);
    let cookie = entered.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-firkin_ui=") && cookie.contains("; Path=/; ") && cookie.contains("; Secure"), "{cookie}");
    let own = cookie.split(';').next().unwrap().to_owned();
    for (cookie, status) in [(own.clone(), 200), (own.replace("__Host-", ""), 303)] {
        let mut page = encrypted(request(&bench, "GET", "/ui/sandboxes", ""));
        page.headers_mut().insert("cookie", cookie.parse().unwrap());
        bench.answer(page).await.expect(status);
    }
    let id = bench.create("").await;
    let mut inside = bench.guest(&id, firkin_wire::ENVD_PORT, "/health");
    inside.headers_mut().insert("cookie", format!("theme=dark; {own}; firkin_ui=x").parse().unwrap());
    bench.answer(inside).await.expect(204);
    let head = tokio::time::timeout(DEADLINE, guest).await.unwrap().unwrap();
    assert!(head.contains("cookie: theme=dark\r\n") && !head.contains("firkin_ui"), "{head}");
    bench.stop().await;
}

#[tokio::test]
async fn what_is_done_to_many_is_on_record_for_each_and_none_is_left_out() {
    let bench = Bench::start().await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let entered = bench.audited(1).await;
    assert!(entered[0]["action"] == "POST /ui/sign-in" && entered[0]["team"] == "firkin", "{entered:?}");
    let ids = [bench.create("").await, bench.create("").await];
    let chosen = [("action", "kill"), ("id", &ids[0]), ("id", &ids[1]), ("id", "inone")];
    browser.post("/ui/sandboxes/bulk", &chosen).await.expect(303);
    let lines = bench.audited(6).await;
    let done: Vec<_> = lines.iter().filter(|line| line["action"] == "POST /ui/sandboxes/bulk").collect();
    assert_eq!(done.len(), 3, "{lines:?}");
    for (id, status) in [(ids[0].as_str(), 204), (&ids[1], 204), ("inone", 404)] {
        assert!(
            done.iter().any(|line| line["object"] == format!("/ui/sandboxes/{id}") && line["status"] == status),
            "{id}: {done:?}"
        );
    }
    let many: Vec<String> = (0..1001).map(|n| format!("i{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|id| ("id", id.as_str())).chain([("action", "kill")]).collect();
    let refused = browser.post("/ui/sandboxes/bulk", &many).await.expect(400);
    assert!(text(&refused).contains("1000 sandboxes may be chosen"), "{refused:?}");
    // A terminal that is asked for is, too, though that changes nothing by itself.
    browser.get(&format!("/ui/sandboxes/{}/terminal/socket", ids[0])).await;
    let lines = bench.audited(8).await;
    assert!(lines.iter().any(|line| line["action"] == "GET /ui/sandboxes/{id}/terminal/socket"), "{lines:?}");
    bench.stop().await;
}

#[tokio::test]
async fn each_page_asks_for_a_session_and_a_key_that_goes_so_far() {
    use firkin_runtime::{runtime::NewKey, store::KeyScope, team::TeamId};
    let bench = Bench::start().await;
    let key = |scope| NewKey { name: String::new(), scope, expires_at: None };
    let mut browsers = Vec::new();
    for scope in [KeyScope::Read, KeyScope::Sandboxes, KeyScope::Full] {
        let (_, key) = bench.runtime.add_key(&TeamId::first(), key(scope)).await.unwrap();
        browsers.push(Browser::enter(&bench, &key).await);
    }
    let rows = crate::teams::rows()
        .into_iter()
        .filter(|(_, path, needs)| path.starts_with("/ui") && matches!(*needs, "LOOKS" | "ACTS" | "BUILDS"));
    // Who signs out is nobody after, an upload is a form of another kind, which it asks for before all else, and this is no node of a cluster.
    let odd = |path: &str| path == "/ui/sign-out" || path.ends_with("/files/upload") || path.starts_with("/ui/nodes");
    for (method, path, needs) in rows.filter(|(_, path, _)| !odd(path)) {
        let path = path.replace("{id}", "inone").replace("{build}", "none").replace("{cell}/{at}", "1/0");
        let stranger = bench.answer(request(&bench, method, &path, "")).await;
        assert!(matches!(stranger.status, 303 | 401), "{method} {path}: {stranger:?}");
        let mut opened = Vec::new();
        for browser in &browsers {
            let answer = if method == "GET" { browser.get(&path).await } else { browser.post(&path, &[]).await };
            // Who may look at the page of teams changes them only with the admin token.
            let by_token = method == "POST" && path.starts_with("/ui/teams");
            opened.push(by_token || !matches!(answer.status, 303 | 401 | 403));
            is_dressed(&answer.headers);
        }
        assert_eq!(opened, [needs == "LOOKS", needs != "BUILDS", true], "{method} {path}");
        if method == "POST" {
            let bare = browsers[2].with_cookie(request(&bench, "POST", &path, ""));
            bench.answer(bare).await.expect(403);
        }
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_server_that_is_no_node_has_no_page_of_nodes() {
    let bench = Bench::start().await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let host = browser.get("/ui/host").await.expect(200);
    assert!(text(&host).contains("href=\"/ui/settings\"") && !text(&host).contains("/ui/nodes"));
    let unknown = browser.get("/ui/nonesuch").await.expect(404);
    for path in ["/ui/nodes", "/ui/nodes/now"] {
        let answer = browser.get(path).await.expect(404);
        assert_eq!(answer.body.to_string().replace(path, "/ui/nonesuch"), unknown.body.to_string());
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_team_sees_its_own_sandboxes_and_a_key_that_looks_only_changes_none() {
    use firkin_runtime::{capacity::TeamQuota, runtime::NewKey, store::KeyScope, team::TeamId};
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let team: TeamId = "b".parse().unwrap();
    bench.runtime.add_team(team.clone(), None, TeamQuota::default()).await.unwrap();
    let key = |scope| NewKey { name: String::new(), scope, expires_at: None };
    let (_, other) = bench.runtime.add_key(&team, key(KeyScope::Full)).await.unwrap();
    let (_, reader) = bench.runtime.add_key(&TeamId::first(), key(KeyScope::Read)).await.unwrap();
    let (other, reader) = (Browser::enter(&bench, &other).await, Browser::enter(&bench, &reader).await);
    let page = format!("/ui/sandboxes/{id}");
    assert!(!text(&other.get("/ui/sandboxes").await.expect(200)).contains(&id));
    for path in [page.clone(), format!("{page}/overview"), format!("{page}/network"), format!("{page}/processes")] {
        other.get(&path).await.expect(404);
    }
    for path in ["/ui/host", "/ui/host/now", "/ui/settings"] {
        other.get(path).await.expect(403);
        reader.get(path).await.expect(200);
    }
    for action in ["pause", "resume", "fork", "snapshot", "kill"] {
        other.post(&format!("{page}/{action}"), &[]).await.expect(404);
        reader.post(&format!("{page}/{action}"), &[]).await.expect(403);
    }
    other.post("/ui/sandboxes/bulk", &[("action", "kill"), ("id", &id)]).await.expect(303);
    assert!(text(&other.get("/ui/sandboxes").await).contains("0 of 1 sandboxes ended."));
    let shown = reader.get(&page).await.expect(200);
    assert!(!text(&shown).contains("/kill\""), "buttons that do nothing are not there");
    reader.get(&format!("{page}/processes")).await.expect(403);
    bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    bench.stop().await;
}
