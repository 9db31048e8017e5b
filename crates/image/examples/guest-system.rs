//! Builds the whole guest system into a cache directory and says where it is. By hand:
//! `cargo run -p firkin-image --example guest-system -- <cache directory> [<guest agent>]`

#![expect(clippy::print_stdout, reason = "a program to run by hand")]

use std::path::Path;
use std::time::Instant;

use firkin_image::{Additions, Cache, Event, HeavyPart, RootSpec, base_rootfs, guest_kernel, initramfs, rootfs};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: guest-system <cache directory> [<guest agent>]")?;
    let begun = Instant::now();
    let report = move |event: Event| {
        let share = event.progress.map(|progress| format!(" [{}/{}]", progress.done, progress.total)).unwrap_or_default();
        println!("{:>7.1} s  {}{share}: {}", begun.elapsed().as_secs_f32(), event.step, event.detail);
    };
    let cache = Cache::open(Path::new(&directory)).await?;
    let kernel = guest_kernel(&cache, &report).await?;
    println!("{kernel:#?}");
    if let Some(agent) = arguments.next() {
        println!("{:#?}", initramfs(&cache, &kernel, &fs_err::read(agent)?).await?);
    }
    let additions = Additions { kernel, certificates: Vec::new() };
    println!("{:#?}", base_rootfs(&cache, &additions, &report).await?);
    println!("{:#?}", rootfs(&cache, &RootSpec::code_interpreter(&HeavyPart::ALL), &additions, &report).await?);
    Ok(())
}
