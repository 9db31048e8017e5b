//! The guest agent of these machines: it remembers a word through everything that happens to them, and a test finds the guest that had one last.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use firkin_engine::fake::{Connection, Guest};
use firkin_wire::control::{Answer, Call, Decoder, GENERATION, Request, Response, Stats, encode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a guest has in its memory.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    epoch: u64,
    word: String,
}

/// The guests of all nodes by sandbox, as each was told last who it is.
static GUESTS: Mutex<Option<HashMap<String, Guest>>> = Mutex::new(None);

fn memory(guest: &Guest) -> Memory {
    serde_json::from_slice(&guest.memory()).unwrap_or_default()
}

fn remember(guest: &Guest, memory: &Memory) {
    guest.remember(serde_json::to_vec(memory).unwrap());
}

/// The guest of a sandbox, wherever it is.
pub(crate) fn guest(id: &str) -> Guest {
    let guests = GUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    guests.as_ref().and_then(|guests| guests.get(id)).expect("it has begun somewhere").clone()
}

/// Has a guest remember a word.
pub(crate) fn tell(id: &str, word: &str) {
    let guest = guest(id);
    remember(&guest, &Memory { word: word.to_owned(), ..memory(&guest) });
}

/// The word that a guest remembers.
pub(crate) fn word(id: &str) -> String {
    memory(&guest(id)).word
}

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
                    let epoch = memory(&guest).epoch;
                    Answer::Hello { generation: GENERATION, version: "test".into(), epoch, envd_ready: true }
                }
                Call::Resume(identity) => {
                    remember(&guest, &Memory { epoch: identity.epoch, ..memory(&guest) });
                    let mut guests = GUESTS.lock().unwrap_or_else(PoisonError::into_inner);
                    guests.get_or_insert_default().insert(identity.sandbox_id.clone(), guest.clone());
                    Answer::Resumed { epoch: identity.epoch, clock_behind_ns: 0, volumes: None }
                }
                Call::Stats => Answer::Stats(Stats {
                    ts: 0,
                    cpu_count: 1,
                    cpu_used_pct: 0.0,
                    mem_total: 0,
                    mem_used: 0,
                    mem_cache: 0,
                    disk_used: 0,
                    disk_total: 0,
                }),
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
