//! A machine's cost to its host, and its console, read from the kernel and from QEMU.

use std::{
    io::{self, BufRead, BufReader},
    ops::Range,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{HostUse, memory::ram::Ram, process::stat_field};

/// Memory from `smaps_rollup` and `smaps`, CPU time from `stat`. Walks page tables: milliseconds for a large guest.
pub(super) fn of_process(pid: u32, inode: u64, memory_bytes: u64) -> io::Result<HostUse> {
    let ram = Ram::find(pid, inode, memory_bytes).map_err(io::Error::other)?;
    let addresses: Vec<Range<u64>> = ram.addresses().collect();
    let rollup = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let ticks = stat_field(pid, 14)? + stat_field(pid, 15)?;
    Ok(HostUse {
        pss_bytes: rollup.lines().find_map(pss).unwrap_or_default(),
        guest_pss_bytes: pss_within(BufReader::new(fs_err::File::open(format!("/proc/{pid}/smaps"))?), &addresses)?,
        cpu_ms: ticks * 1000 / rustix::param::clock_ticks_per_second(),
    })
}

/// The sum over the mappings that lie in one of `addresses`.
fn pss_within(smaps: impl BufRead, addresses: &[Range<u64>]) -> io::Result<u64> {
    let (mut sum, mut counts) = (0, false);
    for line in smaps.lines() {
        let line = line?;
        if let Some(start) = mapping_start(&line) {
            counts = addresses.iter().any(|range| range.contains(&start));
        } else if counts {
            sum += pss(&line).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// `7f..-7f.. rw-p ...` begins a mapping; every other line is `Field: value`.
fn mapping_start(line: &str) -> Option<u64> {
    let (start, _) = line.split_ascii_whitespace().next()?.split_once('-')?;
    u64::from_str_radix(start, 16).ok()
}

/// `Pss:   12 kB`, in bytes.
fn pss(line: &str) -> Option<u64> {
    let kib: u64 = line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// The ring buffer comes as base64, because a guest writes what it likes; the text is for humans.
pub(super) fn decode_console(base64: &str) -> String {
    String::from_utf8_lossy(&STANDARD.decode(base64).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_mappings_count() {
        let smaps = "\
            1000-2000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\nPss: 4 kB\nPss_Dirty: 4 kB\n\
            5000-9000 rw-p 00000000 fe:00 7 /m\nSize: 16 kB\nPss:                  12 kB\nVmFlags: rd wr\n\
            9000-a000 r--p 00004000 fe:00 7 /m\nPss: 1 kB\n";
        assert_eq!(pss_within(smaps.as_bytes(), std::slice::from_ref(&(0x5000..0x9000))).unwrap(), 12 * 1024);
        assert_eq!(pss_within(smaps.as_bytes(), &[0x5000..0x9000, 0x9000..0xa000]).unwrap(), 13 * 1024);
    }
}
