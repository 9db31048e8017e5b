//! What open dashboards cost: five lists of three hundred sandboxes, asked for as the page's script asks. A test binary of its own, because
//! it measures its own process.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and prints its figures")]

use std::time::{Duration, Instant};

use http::{HeaderMap, Request};
use http_body_util::Full;

#[path = "http/agent.rs"]
mod agent;
#[path = "http/bench.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod bench;

use bench::{Answer, Bench, query};

/// Sandboxes in each list.
const SANDBOXES: u32 = 300;
/// Lists that are open.
const DASHBOARDS: usize = 5;
/// Between two questions of one list, as in `list.js`.
const EVERY: Duration = Duration::from_secs(2);
/// Questions of each, with them and without.
const QUESTIONS: usize = 5;
/// Of one processor, beyond what the same time costs without them. The page's own share of this process is in it.
const MOST_PERCENT: f64 = 5.0;
/// How often that is measured: who works beside this makes the same work longer, and not each time.
const ROUNDS: usize = 3;
/// Memory that they may cost.
const MOST_BYTES: u64 = 20 << 20;

/// Ticks of the kernel's clock in a second, on every Linux.
const TICKS: f64 = 100.0;

fn cpu() -> f64 {
    let stat = fs_err::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
}

fn resident() -> u64 {
    let statm = fs_err::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn get(bench: &Bench, path: &str, headers: &HeaderMap) -> Request<Full<bytes::Bytes>> {
    let mut request = Request::get(path).body(Full::default()).unwrap();
    request.headers_mut().extend(headers.clone());
    request.headers_mut().insert("host", bench.address.to_string().parse().unwrap());
    request
}

async fn sign_in(bench: &Bench) -> HeaderMap {
    let request = Request::post("/ui/sign-in")
        .header("host", bench.address.to_string())
        .header("origin", format!("http://{}", bench.address))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::from(query(&[("key", &bench.key)])));
    let Answer { headers, .. } = bench.answer(request.unwrap()).await.expect(303);
    let cookie = headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    HeaderMap::from_iter([(http::header::COOKIE, cookie.parse().unwrap())])
}

/// One open list. Gives how many bytes it was sent.
async fn look(bench: &Bench) -> usize {
    let mut headers = sign_in(bench).await;
    let mut sent = bench.answer(get(bench, "/ui/sandboxes", &headers)).await.expect(200).body.to_string().len();
    let mut turns = tokio::time::interval(EVERY);
    for _ in 0..QUESTIONS {
        turns.tick().await;
        let answer = bench.answer(get(bench, "/ui/sandboxes/rows", &headers)).await;
        if answer.status == 200 {
            assert_eq!(answer.body["found"], SANDBOXES);
            sent += answer.body.to_string().len();
        }
        headers.insert(http::header::IF_NONE_MATCH, answer.headers["etag"].clone());
    }
    sent
}

/// The time of the process that passes while `work` is done and a whole window passes, a second.
async fn cost<T>(work: impl Future<Output = T>) -> (f64, T) {
    let (begun, before) = (Instant::now(), cpu());
    let window = EVERY * u32::try_from(QUESTIONS).unwrap();
    let mut end = Box::pin(tokio::time::sleep(window));
    let (done, ()) = tokio::join!(work, &mut end);
    ((cpu() - before) / begun.elapsed().as_secs_f64(), done)
}

/// What they cost: per cent of a processor beyond what the same time costs without them.
async fn round(bench: &Bench) -> f64 {
    let (idle, ()) = cost(async {}).await;
    let before = resident();
    let looks = futures::future::join_all((0..DASHBOARDS).map(|_| look(bench)));
    let (busy, sent) = cost(looks).await;
    let grown = resident().saturating_sub(before);
    let percent = (busy - idle) * 100.0;
    println!(
        "{DASHBOARDS} dashboards of {SANDBOXES} sandboxes: {percent:.2} % of a processor above {:.2} % without, {} KiB more resident, {} KiB sent",
        idle * 100.0,
        grown >> 10,
        sent.iter().sum::<usize>() >> 10
    );
    assert!(grown < MOST_BYTES, "{grown} bytes");
    percent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_dashboards_of_three_hundred_sandboxes_cost_little() {
    let bench = Bench::start_for(SANDBOXES).await;
    for at in 0..SANDBOXES {
        bench.create(&format!(r#","timeout":3600,"metadata":{{"number":"{at}","owner":"somebody"}}"#)).await;
    }
    let mut rounds = Vec::new();
    while rounds.len() < ROUNDS && !rounds.iter().any(|percent| *percent < MOST_PERCENT) {
        rounds.push(round(&bench).await);
    }
    assert!(rounds.iter().any(|percent| *percent < MOST_PERCENT), "{rounds:?} %");
    bench.stop().await;
}
