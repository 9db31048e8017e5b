//! Which numbers a server owns on this host: its slot networks, interface names and user ids.
//!
//! Several servers live on one host, and a server that is started again must find its running machines under the numbers they
//! had. So each server holds a *claim*: an index from 0 to 63 that stands for 1024 slots.
//!
//! ```text
//!   claim file  /run/firkin/network/claim-NN   flock'd while its server lives; holds the owner's name
//!   addresses   198.18.0.0/15                  2048 a claim, two a slot (RFC 3021 point-to-point)
//!   interfaces  fkNN-SLOT                      the host's end of a slot's way out
//!   nftables    firkin_NN                      the claim's rules on the host
//!   user ids    FIRST + NN * 1024 + SLOT       one a slot; FIRST is 0x70000000 unless configured
//! ```
//!
//! Who owns what is asked of the kernel, never guessed from a name: a claim is taken while its file is locked, and a slot is in
//! use while a process runs under its user id. Locks die with their server and machines keep their user id whatever happens to
//! it, so a claim whose server is dead and that has no such process is free, and what is left of it can be swept.
//!
//! The addresses are those for benchmarks of network devices (RFC 2544), which no host uses in earnest; each is seen only
//! between a slot and its host. The user ids are above those that systemd gives to containers (524288 to 1879048191) and below
//! the sign bit (<https://systemd.io/UIDS-GIDS/>).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Read, Seek, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};

use super::{INTERFACE_PREFIX, SLOT_NETWORKS};

/// Claims on one host.
pub(super) const CLAIMS: u16 = 64;
/// Slots of one claim.
pub(super) const SLOTS_PER_CLAIM: u16 = 1024;
/// Addresses of one slot: the host's end and the slot's.
const ADDRESSES_PER_SLOT: u32 = 2;
/// Longest owner name that is read from a claim file: a path.
const MAX_OWNER_BYTES: u64 = 4096;

/// Which of the host's claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClaimIndex(u16);

impl fmt::Display for ClaimIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

impl ClaimIndex {
    /// The claim of that number, when there is one.
    pub(super) fn new(number: u16) -> Option<Self> {
        (number < CLAIMS).then_some(Self(number))
    }

    /// Every claim, in order.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..CLAIMS).map(Self)
    }

    pub(super) fn number(self) -> u16 {
        self.0
    }

    /// With what the names of its interfaces begin.
    pub(super) fn interface_prefix(self) -> String {
        format!("{INTERFACE_PREFIX}{self}-")
    }

    /// The host's interface of one slot; at most 9 of 15 characters.
    pub(super) fn interface(self, slot: u16) -> String {
        format!("{}{slot}", self.interface_prefix())
    }

    /// Which slot an interface of this claim belongs to.
    pub(super) fn slot_of(self, interface: &str) -> Option<u16> {
        let slot = interface.strip_prefix(&self.interface_prefix())?.parse().ok()?;
        (slot < SLOTS_PER_CLAIM && self.interface(slot) == interface).then_some(slot)
    }
}

/// The user ids of all slots of all claims of a host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uids {
    first: u32,
}

impl Uids {
    /// The default's [first](Self::new).
    pub(super) const DEFAULT_FIRST: u32 = 0x7000_0000;

    /// The range that begins with `first`, unless it would hold root, or ids that some file systems take for negative.
    pub(super) fn new(first: u32) -> Option<Self> {
        let last = first.checked_add(u32::from(CLAIMS) * u32::from(SLOTS_PER_CLAIM) - 1)?;
        (first > 0 && last < i32::MAX.unsigned_abs()).then_some(Self { first })
    }

    /// The user id of one slot.
    pub(super) fn uid(self, claim: ClaimIndex, slot: u16) -> u32 {
        assert!(slot < SLOTS_PER_CLAIM, "slot {slot} is outside its claim");
        self.first + u32::from(claim.0) * u32::from(SLOTS_PER_CLAIM) + u32::from(slot)
    }

    /// Which claim and slot a user id stands for.
    fn slot_of(self, uid: u32) -> Option<(ClaimIndex, u16)> {
        let offset = uid.checked_sub(self.first)?;
        let claim = ClaimIndex::new(u16::try_from(offset / u32::from(SLOTS_PER_CLAIM)).ok()?)?;
        Some((claim, u16::try_from(offset % u32::from(SLOTS_PER_CLAIM)).ok()?))
    }
}

/// The addresses of all slots of a claim.
pub(super) fn slot_net(claim: ClaimIndex) -> Ipv4Net {
    let size = u32::from(SLOTS_PER_CLAIM) * ADDRESSES_PER_SLOT;
    let first = u32::from(SLOT_NETWORKS.network()) + u32::from(claim.0) * size;
    let bits = u8::try_from(size.trailing_zeros()).expect("a power of two has at most 31 zeros");
    Ipv4Net::new_assert(Ipv4Addr::from(first), 32 - bits)
}

/// The two addresses of a slot's way out: the host's and the slot's, in one /31.
pub(super) fn slot_addresses(claim: ClaimIndex, slot: u16) -> (Ipv4Addr, Ipv4Addr) {
    assert!(slot < SLOTS_PER_CLAIM, "slot {slot} is outside its claim");
    let host = u32::from(slot_net(claim).network()) + u32::from(slot) * ADDRESSES_PER_SLOT;
    (Ipv4Addr::from(host), Ipv4Addr::from(host + 1))
}

/// Slots that have a running process, by claim.
pub(super) type Survivors = BTreeMap<ClaimIndex, BTreeSet<u16>>;

/// Finds every process on the host that runs under a slot's user id.
pub(super) fn survivors(uids: Uids) -> io::Result<Survivors> {
    let mut found = Survivors::new();
    for (_, claim, slot) in processes(uids)? {
        found.entry(claim).or_default().insert(slot);
    }
    Ok(found)
}

/// Every process that runs under a slot's user id, with that slot.
pub(super) fn processes(uids: Uids) -> io::Result<Vec<(u32, ClaimIndex, u16)>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that ended meanwhile is none.
        if let Some((claim, slot)) = uid_of(pid)?.and_then(|uid| uids.slot_of(uid)) {
            found.push((pid, claim, slot));
        }
    }
    Ok(found)
}

/// The real user id of a process, or `None` when there is no such process. A zombie holds nothing and counts as none.
pub(super) fn uid_of(pid: u32) -> io::Result<Option<u32>> {
    match fs_err::File::open(format!("/proc/{pid}/status")) {
        Ok(status) => uid_in(status),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The user id in an open status file, whose process may have ended since it was opened.
fn uid_in(status: fs_err::File) -> io::Result<Option<u32>> {
    let (mut status, path) = status.into_parts();
    let mut text = String::new();
    match status.read_to_string(&mut text) {
        Ok(_) => {}
        // Asked of the file itself: an error that names the path has the kernel's number no more.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
        Err(error) => return Err(io::Error::new(error.kind(), format!("failed to read `{}`: {error}", path.display()))),
    }
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    if field("State:") == Some("Z") {
        return Ok(None);
    }
    Ok(field("Uid:").and_then(|uid| uid.parse().ok()))
}

/// A locked claim. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) index: ClaimIndex,
    file: Flock<std::fs::File>,
}

/// Why no claim could be taken.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The claim files cannot be used.
    #[error("cannot use network claim `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All claims are held by live servers, keep machines of dead ones, or collide with the host's own networks.
    #[error("all {CLAIMS} network claims of this host are taken")]
    Exhausted,
}

impl Claim {
    fn path(dir: &Path, index: ClaimIndex) -> PathBuf {
        dir.join(format!("claim-{index}"))
    }

    /// Locks `index` unless someone else has it, and tells whose it was.
    fn lock(dir: &Path, index: ClaimIndex) -> Result<Option<(Self, String)>, ClaimError> {
        let path = Self::path(dir, index);
        let failed = |source| ClaimError::File { path: path.clone(), source };
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let mut file = match Flock::lock(file.into_parts().0, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(failed(error.into())),
        };
        let mut owner = String::new();
        io::Read::by_ref(&mut *file).take(MAX_OWNER_BYTES).read_to_string(&mut owner).map_err(failed)?;
        Ok(Some((Self { index, file }, owner)))
    }

    /// Writes down whose claim this is.
    fn write_owner(&mut self, owner: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(owner.as_bytes())
    }

    /// Gives the claim up for good: nothing of it is left on the host. Its file can go because files of claims are only opened
    /// under the directory's lock, so nobody waits for this one.
    pub(super) fn forget(self, dir: &Path, _lock: &DirLock) -> Result<(), ClaimError> {
        let path = Self::path(dir, self.index);
        fs_err::remove_file(&path).map_err(|source| ClaimError::File { path, source })
    }
}

/// Held while claims are chosen or counted, so that servers that start or end at the same time do so one after the other. No
/// holder waits for anything but the kernel.
#[derive(Debug)]
pub(super) struct DirLock(#[expect(dead_code, reason = "held for its drop")] Flock<std::fs::File>);

/// Creates and locks the claims' directory. Blocks the calling thread while another server holds it.
pub(super) fn lock_dir(dir: &Path) -> Result<DirLock, ClaimError> {
    let failed = |source| ClaimError::File { path: dir.to_owned(), source };
    fs_err::create_dir_all(dir).map_err(failed)?;
    let file = fs_err::File::open(dir).map_err(failed)?;
    let lock = Flock::lock(file.into_parts().0, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))?;
    Ok(DirLock(lock))
}

/// The facts that a claim is chosen by.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    /// Directory of claim files.
    pub(super) dir: &'a Path,
    /// The server that asks. The same owner gets the same claim again.
    pub(super) owner: &'a str,
    /// Slots with running processes.
    pub(super) survivors: &'a Survivors,
    /// Networks that the host uses for something else.
    pub(super) foreign: &'a [Ipv4Net],
}

/// Takes a claim, and returns with it those of dead servers, locked, for the caller to sweep and let go.
pub(super) fn choose(choice: &Choice<'_>, lock: &DirLock) -> Result<(Claim, Vec<Claim>), ClaimError> {
    let failed = |source| ClaimError::File { path: choice.dir.to_owned(), source };
    let mut locked = Vec::new();
    for index in ClaimIndex::all() {
        locked.extend(Claim::lock(choice.dir, index)?);
    }

    let has_survivors = |claim: &Claim| choice.survivors.contains_key(&claim.index);
    let collides = |claim: &Claim| {
        let ours = slot_net(claim.index);
        choice.foreign.iter().any(|net| net.contains(&ours) || ours.contains(net))
    };
    let rank = |(claim, owner): &(Claim, String)| match (owner == choice.owner, has_survivors(claim)) {
        (true, true) => Some(0),
        (true, false) if !collides(claim) => Some(1),
        (false, false) if !collides(claim) => Some(2),
        (true, false) | (false, _) => None,
    };
    let best = (0..locked.len()).filter_map(|at| Some((rank(&locked[at])?, at))).min().ok_or(ClaimError::Exhausted)?.1;
    let (mut chosen, _) = locked.swap_remove(best);
    chosen.write_owner(choice.owner).map_err(failed)?;
    let mut dead = Vec::new();
    for (claim, owner) in locked.into_iter().filter(|(claim, _)| !has_survivors(claim)) {
        if owner.is_empty() {
            // It was free, and stays so.
            claim.forget(choice.dir, lock)?;
        } else {
            dead.push(claim);
        }
    }
    Ok((chosen, dead))
}

/// Whether any claim but `mine` belongs to a live server or keeps machines of a dead one.
pub(super) fn others_exist(dir: &Path, mine: ClaimIndex, survivors: &Survivors, _lock: &DirLock) -> Result<bool, ClaimError> {
    if survivors.keys().any(|claim| *claim != mine) {
        return Ok(true);
    }
    for index in ClaimIndex::all().filter(|index| *index != mine) {
        let path = Claim::path(dir, index);
        if fs_err::exists(&path).map_err(|source| ClaimError::File { path, source })? && Claim::lock(dir, index)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Held by who starts a process, which has all locks until it is another program, and by who has given one back.
    static LOCKS: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn locks() -> std::sync::MutexGuard<'static, ()> {
        LOCKS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn choose_for(dir: &Path, owner: &str, survivors: &Survivors, foreign: &[Ipv4Net]) -> (Claim, Vec<u16>) {
        let (claim, dead) = choose(&Choice { dir, owner, survivors, foreign }, &lock_dir(dir).unwrap()).unwrap();
        (claim, dead.iter().map(|claim| claim.index.number()).collect())
    }

    fn alive(claim: u16, slot: u16) -> Survivors {
        Survivors::from([(ClaimIndex(claim), BTreeSet::from([slot]))])
    }

    #[test]
    fn two_live_servers_never_share_a_claim() {
        let dir = tempfile::tempdir().unwrap();
        let none = Survivors::new();
        let (a, _) = choose_for(dir.path(), "a", &none, &[]);
        let (b, _) = choose_for(dir.path(), "b", &none, &[]);
        let (a_again, _) = choose_for(dir.path(), "a", &none, &[]);
        assert_eq!([a.index.0, b.index.0, a_again.index.0], [0, 1, 2]);
    }

    #[test]
    fn an_owner_gets_its_claim_again_and_a_dead_one_is_swept() {
        let _locks = locks();
        let dir = tempfile::tempdir().unwrap();
        let none = Survivors::new();
        let (a, _) = choose_for(dir.path(), "a", &none, &[]);
        let (b, _) = choose_for(dir.path(), "b", &none, &[]);
        drop((a, b));
        let (b, dead) = choose_for(dir.path(), "b", &none, &[]);
        assert_eq!((b.index.0, dead), (1, vec![0]));
        b.forget(dir.path(), &lock_dir(dir.path()).unwrap()).unwrap();
        let (c, dead) = choose_for(dir.path(), "c", &alive(0, 3), &[]);
        assert_eq!((c.index.0, dead), (1, vec![]), "machines of a dead server keep its claim");
    }

    #[test]
    fn only_claims_that_are_held_have_files() {
        let _locks = locks();
        let dir = tempfile::tempdir().unwrap();
        let files = || {
            let mut names: Vec<_> = fs_err::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let none = Survivors::new();
        let (a, _) = choose_for(dir.path(), "a", &none, &[]);
        let (b, _) = choose_for(dir.path(), "b", &none, &[]);
        assert_eq!(files(), ["claim-00", "claim-01"]);
        let lock = lock_dir(dir.path()).unwrap();
        assert!(others_exist(dir.path(), a.index, &none, &lock).unwrap());
        b.forget(dir.path(), &lock).unwrap();
        assert!(!others_exist(dir.path(), a.index, &none, &lock).unwrap());
        assert_eq!(files(), ["claim-00"]);
        a.forget(dir.path(), &lock).unwrap();
        assert_eq!(files(), Vec::<std::ffi::OsString>::new());
    }

    #[test]
    fn a_process_that_ends_while_it_is_looked_at_is_none() {
        let mut child = {
            let _locks = locks();
            std::process::Command::new("sleep").arg("infinity").spawn().unwrap()
        };
        let status = || fs_err::File::open(format!("/proc/{}/status", child.id())).unwrap();
        let (before, after) = (status(), status());
        assert_eq!(uid_in(before).unwrap(), Some(nix::unistd::getuid().as_raw()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(uid_in(after).unwrap(), None);
        assert_eq!(uid_of(child.id()).unwrap(), None);
    }

    #[test]
    fn a_network_of_the_host_is_passed_by() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = ["198.18.0.0/20".parse().unwrap()];
        let (claim, _) = choose_for(dir.path(), "a", &Survivors::new(), &foreign);
        assert_eq!(claim.index.0, 2, "198.18.0.0/20 covers claims 0 and 1");
    }

    #[test]
    fn numbers_of_slots_do_not_meet() {
        let last = ClaimIndex(CLAIMS - 1);
        assert_eq!(slot_net(ClaimIndex(0)).to_string(), "198.18.0.0/21");
        assert_eq!(slot_net(last).to_string(), "198.19.248.0/21");
        assert_eq!(slot_addresses(last, SLOTS_PER_CLAIM - 1).1, Ipv4Addr::new(198, 19, 255, 255));
        let uids = Uids::new(Uids::DEFAULT_FIRST).unwrap();
        assert_eq!(uids.slot_of(uids.uid(last, 1023)), Some((last, 1023)));
        assert_eq!(uids.slot_of(uids.uid(last, 1023) + 1), None);
        assert_eq!(uids.slot_of(0), None);
        assert!(Uids::new(0).is_none() && Uids::new(0x7fff_0000).is_none() && Uids::new(u32::MAX).is_none());
        assert_eq!(last.slot_of("fk63-1023"), Some(1023));
        for foreign in ["fk63-1024", "fk63-01", "fk63-", "fk62-1", "fk63-+1"] {
            assert_eq!(last.slot_of(foreign), None, "{foreign}");
        }
    }
}
