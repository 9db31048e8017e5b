//! The pool: hands out slots, keeps fresh ones ready, and takes the leavings of used ones away.
//!
//! ```text
//!             ┌── refiller ──► ready (open | sealed) ──┐
//!   numbers ──┤                                        ├─► acquire ─► slot in use ─► dropped ─► reaper ─► numbers
//!             └── built at once, when none is ready ───┘
//! ```
//!
//! Making a slot takes milliseconds, most of it inside the kernel's one lock for interfaces, so few are made at a time and those
//! ahead of demand. Opening a pool is one pass under a lock that all servers of the host share: take a claim, sweep what dead
//! servers left, put the host's rules in place.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use firkin_engine::AttachmentKind;
use ipnet::Ipv4Net;
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    Egress, INTERFACE_PREFIX, NetworkConfig, SLOT_NETWORKS, SetupError, SlotError,
    claim::{self, Choice, Claim, ClaimError, ClaimIndex, SLOTS_PER_CLAIM, Survivors, Uids, slot_net},
    guard::Guard,
    lease::{Host, IndexLease, Numbers, Remains},
    namespace::{self, SocketOpener, on_own_thread},
    netlink::Netlink,
    nft::Batch,
    resolvers,
    rules::{HostPolicy, SlotPolicy, flows_of, host_table, slot_rules},
    slot::{self, NetworkSlot},
    surroundings::Surroundings,
    uplink,
};

/// Slots made at a time. The kernel's lock admits one; the rest is for the steps outside of it.
const BUILDERS: u32 = 4;
/// How long the refiller waits after a failure, and the most that this grows to.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Addresses of the host that a slot's own rules name: each costs a comparison for every packet of the guest. The host's rules
/// know them all, however many there are.
const MAX_OWN_ADDRESSES: usize = 128;

/// The kernel's own default of [`tracked_flows`] on hosts with more than 4 GiB.
const DEFAULT_TRACKED: u32 = 262_144;

/// Why a pool could not be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// More slots than a claim has, or more prepared than may exist.
    #[error("cannot keep {prepared} of {slots} network slots ready; a server has at most {SLOTS_PER_CLAIM}")]
    TooManySlots {
        /// [`NetworkConfig::max_slots`].
        slots: u16,
        /// Prepared of either kind.
        prepared: u32,
    },
    /// The configured user ids include root or go beyond the signed range.
    #[error("cannot run machines under user ids from {first}: there must be 65536 between 1 and 2147483646")]
    UserIds {
        /// [`NetworkConfig::first_uid`].
        first: u32,
    },
    /// No claim could be taken.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A step failed.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

impl From<super::ThreadLost> for OpenError {
    fn from(lost: super::ThreadLost) -> Self {
        Self::Setup(lost.into())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of ours, and the data is valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Ready {
    open: Vec<NetworkSlot>,
    sealed: Vec<NetworkSlot>,
    /// One is being prepared: it will be ready, or its number will be free.
    preparing: bool,
    closed: bool,
}

impl Ready {
    fn of(&mut self, egress: Egress) -> &mut Vec<NetworkSlot> {
        match egress {
            Egress::Allowed => &mut self.open,
            Egress::Denied => &mut self.sealed,
        }
    }
}

/// The slot, or the way to one, for whoever wants one.
enum Found {
    Ready(NetworkSlot),
    Number(IndexLease),
    /// The last number lies in a slot that was prepared for the other kind.
    OtherKind(NetworkSlot),
    /// The last number lies in a slot that is not ready yet.
    Preparing,
}

#[derive(Debug)]
struct Inner {
    host: Arc<Host>,
    ready: Mutex<Ready>,
    /// Told when `preparing` ends.
    prepared_one: Notify,
    builders: Arc<Semaphore>,
    attachment: AttachmentKind,
    prepared: u16,
    prepared_sealed: u16,
}

/// The slots of one server.
///
/// Dropping it without [`NetworkPool::close`] leaves the host's rules and the claim's name in place, for the next server of the
/// same owner; slots that are in use stay usable.
#[derive(Debug)]
pub struct NetworkPool {
    inner: Arc<Inner>,
    config: NetworkConfig,
    /// Until the pool is closed.
    claim: Option<Claim>,
    /// Until the pool is closed.
    guard: Option<Guard>,
    /// Not yet adopted.
    survivors: Mutex<BTreeSet<u16>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for NetworkPool {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl NetworkPool {
    /// Takes a claim, sweeps what dead servers left, puts the host's rules in place and begins to prepare slots. Needs root.
    ///
    /// The host's namespace is that of the calling thread. Interfaces of default routes are read now: a host whose uplink
    /// changes later needs a new pool for new egress.
    pub async fn open(config: NetworkConfig) -> Result<Self, OpenError> {
        let prepared = u32::from(config.prepared) + u32::from(config.prepared_sealed);
        if config.max_slots > SLOTS_PER_CLAIM || prepared > u32::from(config.max_slots) {
            return Err(OpenError::TooManySlots { slots: config.max_slots, prepared });
        }
        let uids = Uids::new(config.first_uid).ok_or(OpenError::UserIds { first: config.first_uid })?;
        let system = |step| move |source| OpenError::Setup(SetupError::System { step, source });
        let netns = Arc::new(namespace::current().map_err(system("open the host's network namespace"))?);
        let opener = SocketOpener::start(Arc::clone(&netns)).map_err(system("start the socket thread"))?;
        let netlink = Netlink::open()?;
        let asked = config.clone();
        let opened = on_own_thread(move || take_claim(&asked, uids)).await?;

        let (remains, leavings) = mpsc::unbounded_channel();
        let host = Arc::new(Host {
            claim: opened.claim.index,
            uids,
            netns,
            opener,
            slot_rules: slot_rules(&opened.policy).prepare(),
            policy: opened.policy,
            remains,
            changed: Notify::new(),
            limit: config.max_slots,
            numbers: Mutex::new(Numbers::of_survivors(opened.survivors.clone())),
        });
        let inner = Arc::new(Inner {
            host,
            ready: Mutex::default(),
            prepared_one: Notify::new(),
            builders: Arc::new(Semaphore::new(BUILDERS as usize)),
            attachment: config.attachment,
            prepared: config.prepared,
            prepared_sealed: config.prepared_sealed,
        });
        let tasks = [tokio::spawn(refill(Arc::clone(&inner))), tokio::spawn(reap(leavings, netlink))];
        Ok(Self {
            inner,
            config,
            claim: Some(opened.claim),
            guard: Some(opened.guard),
            survivors: Mutex::new(opened.survivors),
            tasks,
        })
    }

    /// The number of the claim, which names of interfaces and tables begin with. The same owner gets the same again.
    #[must_use]
    pub fn claim(&self) -> u16 {
        self.inner.host.claim.number()
    }

    /// Slots in which machines of an earlier server ran when the pool was opened, and that were not yet
    /// [adopted](Self::adopt). Their numbers are not given out until then.
    #[must_use]
    pub fn survivors(&self) -> BTreeSet<u16> {
        lock(&self.survivors).clone()
    }

    /// What is around every guest of the pool.
    #[must_use]
    pub fn surroundings(&self) -> Surroundings {
        Surroundings::of(&self.inner.host.policy)
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.inner.host
    }

    /// Frees the numbers of survivors that are no more.
    pub(super) fn forget_survivors(&self, gone: &[u16]) {
        for number in gone {
            if lock(&self.survivors).remove(number) {
                self.inner.host.forget_survivor(*number);
            }
        }
    }

    /// A fresh slot of the pool's [kind](NetworkConfig::attachment). Ready ones are given at once; else one is made, which takes some
    /// milliseconds.
    ///
    /// When the future is dropped, what was begun is undone.
    pub async fn acquire(&self, egress: Egress) -> Result<NetworkSlot, SlotError> {
        self.acquire_for(self.config.attachment, egress).await
    }

    /// The same with a slot of this kind, for one of several engines. Only those of the pool's are ever ready.
    pub async fn acquire_for(&self, attachment: AttachmentKind, egress: Egress) -> Result<NetworkSlot, SlotError> {
        let inner = &self.inner;
        loop {
            let prepared_one = inner.prepared_one.notified();
            tokio::pin!(prepared_one);
            prepared_one.as_mut().enable();
            match inner.take(attachment, egress)? {
                Found::Ready(slot) => {
                    inner.host.notify();
                    return Ok(slot);
                }
                Found::Number(lease) => return inner.build(lease, attachment, egress).await,
                Found::OtherKind(mut slot) => {
                    slot.set_attachment(attachment).await?;
                    slot.set_egress(egress).await?;
                    return Ok(slot);
                }
                Found::Preparing => prepared_one.await,
            }
        }
    }

    /// Takes over the slot `index` of the running machine `pid`, started by an earlier server with this claim. A slot is adopted
    /// once; when that fails or is cancelled, it stays as it is and may be tried again.
    pub async fn adopt(&self, pid: u32, index: u16) -> Result<NetworkSlot, SlotError> {
        let unknown = SlotError::NotOurs { pid, index, reason: "it is not among the survivors" };
        if !lock(&self.survivors).contains(&index) {
            return Err(unknown);
        }
        let lease = self.inner.host.lease_of_survivor(index);
        let (lease, netns, way_out) = slot::find_survivor(lease, pid).await?;
        slot::renew(&lease, &netns).await?;
        if !lock(&self.survivors).remove(&index) {
            return Err(unknown);
        }
        lease.hold();
        Ok(slot::adopted(lease, netns, way_out))
    }

    /// Slots that are ready: with egress, and without.
    #[must_use]
    pub fn ready(&self) -> (usize, usize) {
        let ready = lock(&self.inner.ready);
        (ready.open.len(), ready.sealed.len())
    }

    /// Takes everything down: ready slots, ways out, the host's rules, the claim. Slots in use lose their way out; machines that
    /// were [released](NetworkSlot::release) or never adopted keep it, and then the rules and the claim stay with them.
    pub async fn close(mut self) -> Result<(), OpenError> {
        self.tasks[0].abort();
        let unused = {
            let mut ready = lock(&self.inner.ready);
            ready.closed = true;
            (std::mem::take(&mut ready.open), std::mem::take(&mut ready.sealed))
        };
        drop(unused);
        self.inner.end_preparing(Egress::Denied, None);
        // Waits for slots that are being made for callers who may have gone; a closed semaphore would not.
        let idle = self.inner.builders.acquire_many(BUILDERS).await;
        drop(idle.map_err(|_| super::ThreadLost(None))?);
        let (barrier, reaped) = oneshot::channel();
        if self.inner.host.remains.send(Remains::Barrier(barrier)).is_ok() {
            reaped.await.map_err(|_| super::ThreadLost(None))?;
        }
        if let Some(guard) = self.guard.take() {
            guard.end().await;
        }
        let claim = self.claim.take().expect("a pool is closed once");
        let dir = self.config.claims_dir.clone();
        let uids = self.inner.host.uids;
        on_own_thread(move || take_down(&dir, claim, uids)).await
    }
}

impl Inner {
    /// Makes a slot on a thread of its own, a few at a time.
    async fn build(&self, lease: IndexLease, attachment: AttachmentKind, egress: Egress) -> Result<NetworkSlot, SlotError> {
        let index = lease.index();
        // The semaphore is never closed.
        let permit = Arc::clone(&self.builders).acquire_owned().await.map_err(|_| SlotError::Closed)?;
        let job = move || {
            let built = slot::build(lease, attachment, egress);
            drop(permit);
            built
        };
        on_own_thread(job).await.map_err(|source| SlotError::Setup { index, source })
    }

    /// The best way to a slot at this moment.
    fn take(&self, attachment: AttachmentKind, egress: Egress) -> Result<Found, SlotError> {
        let other = match egress {
            Egress::Allowed => Egress::Denied,
            Egress::Denied => Egress::Allowed,
        };
        let mut ready = lock(&self.ready);
        if ready.closed {
            return Err(SlotError::Closed);
        }
        if attachment == self.attachment
            && let Some(slot) = ready.of(egress).pop()
        {
            return Ok(Found::Ready(slot));
        }
        if let Some(lease) = self.host.lease() {
            return Ok(Found::Number(lease));
        }
        if let Some(slot) = ready.of(other).pop().or_else(|| ready.of(egress).pop()) {
            return Ok(Found::OtherKind(slot));
        }
        if ready.preparing { Ok(Found::Preparing) } else { Err(SlotError::Exhausted { limit: self.host.limit }) }
    }

    /// Begins to prepare a slot of a kind that there are too few of.
    fn begin_preparing(&self) -> Option<(Egress, IndexLease)> {
        let mut ready = lock(&self.ready);
        if ready.closed {
            return None;
        }
        let kinds = [(Egress::Allowed, self.prepared), (Egress::Denied, self.prepared_sealed)];
        let (egress, _) = kinds.into_iter().find(|(egress, depth)| ready.of(*egress).len() < usize::from(*depth))?;
        let lease = self.host.lease()?;
        ready.preparing = true;
        Some((egress, lease))
    }

    /// Puts what was prepared where callers find it.
    fn end_preparing(&self, egress: Egress, slot: Option<NetworkSlot>) {
        let mut ready = lock(&self.ready);
        ready.preparing = false;
        if !ready.closed {
            ready.of(egress).extend(slot);
        }
        drop(ready);
        self.prepared_one.notify_waiters();
    }
}

async fn refill(inner: Arc<Inner>) {
    let mut pause = RETRY.0;
    loop {
        let Some((egress, lease)) = inner.begin_preparing() else {
            inner.host.changed.notified().await;
            continue;
        };
        match inner.build(lease, inner.attachment, egress).await {
            Ok(slot) => {
                pause = RETRY.0;
                inner.end_preparing(egress, Some(slot));
            }
            Err(error) => {
                inner.end_preparing(egress, None);
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot prepare a network slot");
                tokio::time::sleep(pause).await;
                pause = RETRY.1.min(pause * 2);
            }
        }
    }
}

async fn reap(mut leavings: mpsc::UnboundedReceiver<Remains>, netlink: Netlink) {
    while let Some(remains) = leavings.recv().await {
        match remains {
            Remains::WayOut(lease) => {
                if let Err(error) = netlink.delete("delete the way out of a used slot", &lease.interface()).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        slot = lease.index(),
                        "cannot remove the way out of a used network slot; the next sweep tries again"
                    );
                }
            }
            Remains::Barrier(done) => drop(done.send(())),
        }
    }
}

struct Opened {
    claim: Claim,
    guard: Guard,
    survivors: BTreeSet<u16>,
    policy: SlotPolicy,
}

/// The part of opening that one server of a host does at a time. Runs on a thread of its own in the host's namespace.
fn take_claim(config: &NetworkConfig, uids: Uids) -> Result<Opened, OpenError> {
    let system = |step| move |source| SetupError::System { step, source };
    let dir = config.claims_dir.as_path();
    let lock = claim::lock_dir(dir)?;
    let everyone = claim::survivors(uids).map_err(system("look for machines of earlier servers"))?;
    namespace::block_on(async {
        let netlink = Netlink::open()?;
        let foreign = foreign_networks(&netlink).await?;
        let choice = Choice { dir, owner: &config.owner, survivors: &everyone, foreign: &foreign };
        let (claim, dead) = claim::choose(&choice, &lock)?;
        for claim in dead {
            tracing::info!(claim = claim.index.number(), "sweeping the network of a server that ended without closing it");
            sweep(&netlink, claim.index, &everyone).await?;
            delete_table(claim.index)?;
            netlink.end_cut(slot_net(claim.index)).await?;
            claim.forget(dir, &lock)?;
        }
        sweep(&netlink, claim.index, &everyone).await?;

        let own: BTreeSet<_> = netlink.addresses().await?.into_iter().collect();
        let resolvers = match &config.resolvers {
            Some(resolvers) => resolvers.clone(),
            None => resolvers::of_host(&own).map_err(system("read the host's resolvers"))?,
        };
        let uplinks = netlink.uplinks().await?;
        let guarded = uplink::mark(dir, &uplinks, &lock)?;
        let reachable = config.reachable.clone();
        let policy = HostPolicy { claim: claim.index, resolvers: resolvers.clone(), reachable: reachable.clone(), guarded };
        let guard = Guard::start(policy).await?;
        uplink::enable(&uplinks, &lock)?;
        let survivors = everyone.get(&claim.index).cloned().unwrap_or_default();
        let policy = SlotPolicy {
            own: own_addresses(own),
            resolvers,
            reachable,
            flows: flows_of(tracked_flows().unwrap_or(DEFAULT_TRACKED), config.max_slots, config.flow_percent),
            rates: config.rates,
        };
        Ok(Opened { claim, guard, survivors, policy })
    })
    .map_err(system("start a runtime"))?
}

/// Flows that the host's table holds, if that is told: it is when connection tracking is loaded.
fn tracked_flows() -> Option<u32> {
    fs_err::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?.trim().parse().ok()
}

/// Those of the host's addresses that rules of slots name: not what they deny anyway.
fn own_addresses(own: BTreeSet<Ipv4Addr>) -> Vec<Ipv4Addr> {
    let mut own: Vec<_> = own.into_iter().filter(|ip| !ip.is_loopback() && !SLOT_NETWORKS.contains(ip)).collect();
    if own.len() > MAX_OWN_ADDRESSES {
        tracing::warn!(addresses = own.len(), MAX_OWN_ADDRESSES, "slots' own rules do not name all addresses of this host");
        own.truncate(MAX_OWN_ADDRESSES);
    }
    own
}

/// Networks of the host that overlap those of slots and are not slots.
async fn foreign_networks(netlink: &Netlink) -> Result<Vec<Ipv4Net>, SetupError> {
    let ours: BTreeSet<u32> = netlink.veths(INTERFACE_PREFIX).await?.into_iter().map(|veth| veth.index).collect();
    let routes = netlink.routes().await?.into_iter().filter(|route| {
        // A route to everything, or to half of it, is no claim to these addresses.
        let specific = route.net.prefix_len() >= 8;
        specific && (SLOT_NETWORKS.contains(&route.net) || route.net.contains(&SLOT_NETWORKS)) && !ours.contains(&route.interface)
    });
    Ok(routes.map(|route| route.net).collect())
}

/// Deletes ways out of slots that have no machine.
async fn sweep(netlink: &Netlink, claim: ClaimIndex, survivors: &Survivors) -> Result<(), SetupError> {
    let alive = survivors.get(&claim);
    for veth in netlink.veths(&claim.interface_prefix()).await? {
        let is_used = claim.slot_of(&veth.name).is_some_and(|slot| alive.is_some_and(|alive| alive.contains(&slot)));
        if !is_used {
            netlink.delete("sweep a way out without a machine", &veth.name).await?;
        }
    }
    Ok(())
}

fn delete_table(claim: ClaimIndex) -> Result<(), SetupError> {
    let deleted = Batch::delete(host_table(claim)).commit();
    deleted.map_err(|source| SetupError::Firewall { step: "delete the host's rules", source })
}

/// The part of closing that one server of a host does at a time. A claim that still has machines stays its owner's.
fn take_down(dir: &std::path::Path, claim: Claim, uids: Uids) -> Result<(), OpenError> {
    let system = |step| move |source: io::Error| SetupError::System { step, source };
    let lock = claim::lock_dir(dir)?;
    let everyone = claim::survivors(uids).map_err(system("look for running machines"))?;
    namespace::block_on(async { sweep(&Netlink::open()?, claim.index, &everyone).await })
        .map_err(system("start a runtime"))??;
    if everyone.contains_key(&claim.index) {
        return Ok(());
    }
    if !claim::others_exist(dir, claim.index, &everyone, &lock)? {
        uplink::disable(dir, &lock)?;
    }
    delete_table(claim.index)?;
    // The watch may have been ended within one.
    namespace::block_on(async { Netlink::open()?.end_cut(slot_net(claim.index)).await }).map_err(system("start a runtime"))??;
    Ok(claim.forget(dir, &lock)?)
}
