//! The guest agent of the machines under test: answers what the host asks, at once.

use firkin_engine::fake::Connection;
use firkin_wire::control::{Answer, Call, Decoder, GENERATION, Request, Response, Stats, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Runs for one control connection.
pub(crate) async fn run(connection: Connection) {
    let Connection { mut stream, guest } = connection;
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => decoder.push(&buffer[..read]),
            Ok(_) | Err(_) => return,
        }
        while let Some(Request { id, call, .. }) = decoder.next() {
            let answer = match call {
                Call::Hello => {
                    let epoch = String::from_utf8(guest.memory()).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                    Answer::Hello { generation: GENERATION, version: "test".into(), epoch, envd_ready: true }
                }
                Call::Resume(identity) => {
                    guest.remember(identity.epoch.to_string());
                    let volumes = identity.volumes.map(|volumes| volumes.len());
                    Answer::Resumed { epoch: identity.epoch, clock_behind_ns: 0, volumes }
                }
                Call::Stats => Answer::Stats(STATS),
                Call::Sync | Call::Shrink => Answer::Done,
                Call::PowerOff => {
                    guest.power_off();
                    Answer::Done
                }
            };
            let frame = encode(&Response { id, answer, proof: None }).unwrap();
            if stream.write_all(&frame).await.is_err() {
                return;
            }
        }
    }
}

const STATS: Stats = Stats {
    ts: 1_800_000_000,
    cpu_count: 1,
    cpu_used_pct: 12.5,
    mem_total: 512 << 20,
    mem_used: 64 << 20,
    mem_cache: 32 << 20,
    disk_used: 1 << 20,
    disk_total: 1 << 30,
};
