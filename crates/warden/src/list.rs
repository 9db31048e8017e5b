//! The list of what the warden may stop: a file for each machine. Its first line names the start of the host in which it was written, each
//! other one a process of the machine, and the last one is a dot, so that nothing is missing.

use std::{io, path::Path};

use fs_err as fs;

use crate::ProcessId;

/// Where the files are, in the warden's directory.
pub(crate) const DIR: &str = "machines";

/// Of one machine: QEMU has one process, gVisor has a few.
const MOST_PROCESSES: usize = 64;

/// A line is two numbers of at most 20 digits.
const MOST_BYTES: u64 = 64 * 64;

/// More than a host has machines.
const MOST_MACHINES: usize = 1 << 16;

/// In names of files that are not whole yet.
const HIDDEN: char = '.';

fn checked(name: &str) -> io::Result<&str> {
    let is_name =
        !name.is_empty() && name.len() <= 128 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_name {
        Ok(name)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a name of letters, digits, `-` and `_`"))
    }
}

/// Removes what is not whole, or from before the host was started.
pub(crate) fn tidy(dir: &Path, boot: u128) -> io::Result<()> {
    let list = dir.join(DIR);
    fs::create_dir_all(&list)?;
    for entry in fs::read_dir(&list)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !matches!(get(dir, boot, &name), Ok(Some(_))) || name.starts_with(HIDDEN) {
            fs::remove_file(list.join(name))?;
        }
    }
    Ok(())
}

/// Lists the processes of one machine, whole or not at all.
pub(crate) fn put(dir: &Path, boot: u128, name: &str, processes: &[ProcessId]) -> io::Result<()> {
    let name = checked(name)?;
    if processes.len() > MOST_PROCESSES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a machine has fewer processes"));
    }
    let lines: String = processes.iter().map(|ProcessId { pid, start_ticks }| format!("{pid} {start_ticks}\n")).collect();
    let (new, path) = (dir.join(DIR).join(format!("{HIDDEN}{name}")), dir.join(DIR).join(name));
    fs::write(&new, format!("{boot:032x}\n{lines}.\n"))?;
    fs::rename(&new, &path)
}

/// Takes one machine off, if it is there.
pub(crate) fn remove(dir: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(dir.join(DIR).join(checked(name)?)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The machines that are listed.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir.join(DIR))?.take(MOST_MACHINES) {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with(HIDDEN) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The processes of one machine; `None` where it was taken off meanwhile, or is of another start of the host.
pub(crate) fn get(dir: &Path, boot: u128, name: &str) -> io::Result<Option<Vec<ProcessId>>> {
    let path = dir.join(DIR).join(name);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.len() > MOST_BYTES => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let text = fs::read_to_string(&path)?;
    // The last line says that nothing is missing.
    let whole = text.strip_suffix(".\n").and_then(|text| text.split_once('\n'));
    let (of, lines) = whole.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not whole"))?;
    if of != format!("{boot:032x}") {
        return Ok(None);
    }
    let process = |line: &str| {
        let (pid, start_ticks) = line.split_once(' ')?;
        Some(ProcessId { pid: pid.parse().ok()?, start_ticks: start_ticks.parse().ok()? })
    };
    let processes: Option<Vec<_>> = lines.lines().map(process).collect();
    processes.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a line is not two numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        tidy(dir.path(), 1).unwrap();
        let processes = [ProcessId { pid: 1, start_ticks: 2 }, ProcessId { pid: 3, start_ticks: u64::MAX }];
        put(dir.path(), 1, "one", &processes).unwrap();
        put(dir.path(), 1, "none", &[]).unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["none", "one"]);
        assert_eq!(get(dir.path(), 1, "one").unwrap(), Some(processes.to_vec()));
        assert_eq!(get(dir.path(), 1, "none").unwrap(), Some(Vec::new()));
        assert_eq!(get(dir.path(), 1, "other").unwrap(), None);
        let text = fs::read(dir.path().join(DIR).join("one")).unwrap();
        for cut in 0..text.len() {
            fs::write(dir.path().join(DIR).join("cut"), &text[..cut]).unwrap();
            get(dir.path(), 1, "cut").unwrap_err();
        }
        assert_eq!(get(dir.path(), 2, "one").unwrap(), None, "another start of the host");
        tidy(dir.path(), 1).unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["none", "one"]);
        remove(dir.path(), "one").unwrap();
        tidy(dir.path(), 2).unwrap();
        assert_eq!(names(dir.path()).unwrap(), Vec::<String>::new());
        remove(dir.path(), "one").unwrap();
        for bad in ["", "../x", ".x", "a b"] {
            put(dir.path(), 1, bad, &[]).unwrap_err();
        }
    }
}
