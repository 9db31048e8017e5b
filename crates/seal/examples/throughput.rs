//! How fast streams are sealed and opened on this host: what a pause and a resume pay for encryption, disk aside.

#![expect(clippy::print_stdout, reason = "its result")]

use std::time::{Duration, Instant};

use firkin_seal::{DataKey, open, seal};

const MIB: usize = 64;
const SAMPLES: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let key = DataKey::random();
    // Neither zeros, which are only told, nor the same chunk again and again.
    let plain: Vec<u8> = (0u32..).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).take(MIB << 20).collect();
    let mut times = (Vec::new(), Vec::new());
    let mut sealed = Vec::with_capacity(plain.len() + plain.len() / 1024);
    for _ in 0..SAMPLES {
        sealed.clear();
        let begun = Instant::now();
        seal(&key, "throughput", &mut &plain[..], &mut sealed)?;
        times.0.push(begun.elapsed());
        let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile())?;
        let begun = Instant::now();
        open(&key, "throughput", &mut &sealed[..], &file)?;
        times.1.push(begun.elapsed());
    }
    println!("{MIB} MiB, {SAMPLES} samples each, MiB a second, slowest, median and fastest");
    tell("seal", times.0);
    tell("open, into memory", times.1);
    Ok(())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let speed = |time: Duration| u128::try_from(MIB).unwrap_or_default() * 1_000_000 / time.as_micros().max(1);
    println!("{what}: {} {} {}", speed(times[times.len() - 1]), speed(times[times.len() / 2]), speed(times[0]));
}
