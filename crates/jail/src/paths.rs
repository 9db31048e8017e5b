//! Landlock: what may be opened, by whatever name it is found.
//!
//! A root has no names of the host, but `/proc/self/fd` leads to each descriptor's file, and whoever opens that anew asks the
//! file's permissions and not the descriptor's. So a file that was handed to be read is opened to be read; a directory, a file that
//! somebody sends over a socket, or one in a root that was left, not at all. Connections by TCP and to abstract sockets, and signals
//! to processes outside, end here too, where the kernel's Landlock is new enough to know of them. The rules are made in the parent,
//! where memory may be allocated; the child only puts them on.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, AddRuleError, AddRulesError, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    sys::stat::{SFlag, fstat},
};

/// What we know of. A kernel that knows less is asked for less.
const KNOWN: ABI = ABI::V6;

/// Rules by which everything in the root `top` may be read and run, and each of `handed` opened as it is open.
pub(crate) fn rules(top: BorrowedFd<'_>, handed: &[OwnedFd]) -> io::Result<OwnedFd> {
    let mut rules = of_root(top).map_err(io::Error::other)?;
    for descriptor in handed {
        if let Some(access) = access(descriptor)? {
            rules = with_file(rules, descriptor.as_fd(), access)?;
        }
    }
    Option::<OwnedFd>::from(rules).ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "the kernel has no Landlock"))
}

fn of_root(top: BorrowedFd<'_>) -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rule(PathBeneath::new(top, AccessFs::from_read(KNOWN)))
}

/// How a file is open. None: it is something else, which need not be opened anew.
fn access(descriptor: &OwnedFd) -> io::Result<Option<BitFlags<AccessFs>>> {
    if SFlag::from_bits_truncate(fstat(descriptor)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Ok(None);
    }
    let flags = OFlag::from_bits_truncate(fcntl(descriptor, FcntlArg::F_GETFL)?);
    let read = BitFlags::from(AccessFs::ReadFile);
    let written = flags & OFlag::O_ACCMODE != OFlag::O_RDONLY;
    Ok(Some(if written { read | AccessFs::WriteFile | AccessFs::Truncate } else { read }))
}

fn with_file(rules: RulesetCreated, file: BorrowedFd<'_>, access: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    let before = rules.try_clone()?;
    match rules.add_rule(PathBeneath::new(file, access)) {
        // A file in memory that never had a name is outside of all rules, and the kernel wants none for it.
        Err(RulesetError::AddRules(AddRulesError::Fs(AddRuleError::AddRuleCall { source, .. })))
            if source.raw_os_error() == Some(libc::EBADFD) =>
        {
            Ok(before)
        }
        added => added.map_err(io::Error::other),
    }
}
