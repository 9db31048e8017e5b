//! The agent's own code, made such that a fetch of an instruction from it never ends the agent.
//!
//! Builds of gVisor that are not told what kind an access was take one for reading, and for writing when it comes again at once. For an
//! instruction that lies on two pages, of which the second is not there yet, both are wrong: of a file of an EROFS image the page comes as one
//! to read, is asked for again, and counts as a write to what is read only, which is an end by SIGSEGV. Pages are not there in a process just
//! forked and in every one just restored, and where the mapping has been cut into parts, as it is where the runtime has patched a system call,
//! an instruction can come to lie so. Where the code may be written to, the second answer gives the page. Writing to one's own code takes
//! nothing from anybody else: a container's boundary is its kernel, and whoever can write here is this process already.
#![expect(unsafe_code, reason = "protection of pages can only be changed by address")]

use std::{ffi::c_void, io, ops::Range, path::Path};

use rustix::mm::{MprotectFlags, mprotect};

/// Lets this program's code be written to by itself.
pub(super) fn make_writable() -> io::Result<()> {
    let own = fs_err::read_link("/proc/self/exe")?;
    for range in executable(&fs_err::read_to_string("/proc/self/maps")?, &own) {
        let (start, flags) = (range.start as *mut c_void, MprotectFlags::READ | MprotectFlags::WRITE | MprotectFlags::EXEC);
        // SAFETY: the range is this program's code, mapped as long as it lives. It stays readable and executable, and nobody writes to it.
        unsafe { mprotect(start, range.len(), flags)? };
    }
    Ok(())
}

/// Where code of `program` is mapped, by lines of proc_pid_maps(5): `start-end rwxp offset device inode path`.
fn executable<'a>(maps: &'a str, program: &'a Path) -> impl Iterator<Item = Range<usize>> + 'a {
    maps.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (addresses, permissions, path) = (words.next()?, words.next()?, words.nth(3)?);
        let (start, end) = addresses.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        (permissions == "r-xp" && Path::new(path) == program).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_programs_code_is_found() {
        let maps = "00064000-00069000 r-xp 00000000 00:00 0      [usertrap]\n\
            1000-2000 r--p 00000000 00:1b 5899396             /usr/lib/firkin/guest\n\
            2000-5000 r-xp 0020b000 00:1b 5899396             /usr/lib/firkin/guest\n\
            5000-6000 rw-p 00627000 00:1b 5899396             /usr/lib/firkin/guest\n\
            7000-8000 r-xp 00000000 00:1b 5899397             /usr/lib/libc.so\n\
            9000-a000 rw-p 00000000 00:00 0\n";
        let mut found = executable(maps, Path::new("/usr/lib/firkin/guest"));
        assert_eq!((found.next(), found.next()), (Some(0x2000..0x5000), None));
    }

    #[test]
    fn code_goes_on_as_code_once_it_may_be_written_to() {
        make_writable().unwrap();
        let own = fs_err::read_link("/proc/self/exe").unwrap();
        let maps = fs_err::read_to_string("/proc/self/maps").unwrap();
        assert_eq!(executable(&maps, &own).count(), 0);
        let own = own.to_str().unwrap();
        assert!(maps.lines().any(|line| line.contains("rwxp") && line.ends_with(own)), "{maps}");
    }
}
