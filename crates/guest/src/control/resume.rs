//! Becoming a sandbox: everything that two clones of one snapshot must not share, in the order that keeps user code from seeing
//! the old self.
//!
//! Random bytes come first, because every later step might draw some. Nothing is spawned but the image's own hooks, and nothing is opened
//! or looked for that can be held: under emulation this path is the latency of a create.

use std::{io, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use firkin_causes::chain;
use firkin_wire::{
    control::{GuestNetwork, Identity},
    nonce::Bond,
};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

use super::{
    entropy::{Generator, SEED_BYTES},
    files::Files,
    hooks,
    network::{self, Neighbours, NetworkError},
};
use crate::{
    envd::{EnvdState, Settings, sandbox_env},
    reaper::Reaper,
    volumes::{VolumeError, Volumes},
};

/// Name length that `sethostname(2)` takes.
const MAX_HOST_NAME: usize = 64;

/// Why a machine did not take an identity. It must not run user code then.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResumeError {
    /// An older life of this sandbox.
    #[error("cannot resume epoch {asked}: epoch {seen} has been given already")]
    OldEpoch {
        /// The epoch that the host asked for.
        asked: u64,
        /// The epoch in force.
        seen: u64,
    },
    /// The seed is not 32 bytes in base64.
    #[error("cannot use the entropy: it is not {SEED_BYTES} bytes in base64")]
    Seed,
    /// The id cannot be a host name.
    #[error("cannot use sandbox id `{0}` as a host name")]
    Name(String),
    /// The machine id is not 32 lower-case hex digits.
    #[error("cannot use machine id `{0}`")]
    MachineId(String),
    /// The kernel refuses the seed.
    #[error("cannot reseed the random generator")]
    Entropy(#[source] io::Error),
    /// The kernel refuses the time.
    #[error("cannot set the clock")]
    Clock(#[source] nix::Error),
    /// The kernel refuses the name.
    #[error("cannot set the host name")]
    HostName(#[source] nix::Error),
    /// A file of `/etc` cannot be written.
    #[error("cannot write the machine's files")]
    Files(#[source] io::Error),
    /// The interface does not take the settings.
    #[error("cannot set up the network")]
    Network(#[source] NetworkError),
    /// A volume is not mounted.
    #[error("cannot mount the volumes")]
    Volumes(#[source] VolumeError),
}

/// What a kernel of this guest's own has to be told of.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) generator: Generator,
    pub(super) watch: network::Watch,
}

/// The state in force.
#[derive(Debug)]
pub(super) struct Current {
    epoch: u64,
    network: Option<GuestNetwork>,
    /// Whether something of it has changed since it was seen to be in force.
    network_touched: bool,
    files: Files,
    /// Absent in a container.
    kernel: Option<Kernel>,
    reaper: Reaper,
    volumes: Volumes,
}

/// What the host hears of an identity that is in force.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resumed {
    /// How far the clock was behind, in nanoseconds.
    pub(super) clock_behind_ns: i64,
    /// How many volumes there are, if it was told which.
    pub(super) volumes: Option<usize>,
}

impl Current {
    /// Nobody, before the first epoch.
    pub(super) fn new(files: Files, kernel: Option<Kernel>, reaper: Reaper) -> Self {
        Self { epoch: 0, network: None, network_touched: false, files, kernel, reaper, volumes: Volumes::default() }
    }

    /// Whether another's kernel is under it.
    pub(super) fn is_in_container(&self) -> bool {
        self.kernel.is_none()
    }

    /// The highest epoch given; 0 before the first.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// By which the host proves that it means this machine.
    pub(super) fn set_bond(&self, bond: &Bond) {
        self.volumes.set_bond(bond);
    }

    /// Takes the identity; all of it is in force on return.
    ///
    /// An equal epoch is a repetition, after a lost answer or for the clock's sake, and is carried out again without cutting
    /// connections and without the image's hooks, which have run.
    pub(super) fn resume(&mut self, identity: &Identity, state: &EnvdState) -> Result<Resumed, ResumeError> {
        let seed = check(identity, self.epoch)?;
        let new_life = identity.epoch > self.epoch;
        if new_life {
            state.begin_era();
        }
        self.epoch = identity.epoch;
        let clock_behind_ns = match &self.kernel {
            Some(kernel) => {
                kernel.generator.add(seed).map_err(ResumeError::Entropy)?;
                set_clock(identity.realtime_ns).map_err(ResumeError::Clock)?
            }
            // The host's own are in force.
            None => 0,
        };
        nix::unistd::sethostname(&identity.sandbox_id).map_err(ResumeError::HostName)?;
        write_files(identity, &self.files).map_err(ResumeError::Files)?;
        self.set_network(identity.network.as_ref(), new_life)?;
        let wanted = identity.volumes.as_ref();
        let volumes = wanted.map(|wanted| self.volumes.set(wanted)).transpose().map_err(ResumeError::Volumes)?;
        state.set(Settings {
            access_token: identity.access_token.clone(),
            default_user: identity.default_user.clone(),
            default_workdir: identity.default_workdir.clone(),
            env: sandbox_env(&identity.sandbox_id, &identity.template_id, &identity.env),
        });
        if new_life {
            hooks::run(identity, &self.reaper);
        }
        Ok(Resumed { clock_behind_ns, volumes })
    }
}

impl Current {
    /// Puts network settings in force that are new, or that user code has undone: what it made of the interface ends with the life in
    /// which it did that. Only where they are new, a guest that does not take them is not who it should be.
    fn set_network(&mut self, wanted: Option<&GuestNetwork>, new_life: bool) -> Result<(), ResumeError> {
        let Some(wanted) = wanted else { return Ok(()) };
        if self.network.as_ref() != Some(wanted) {
            network::apply(Some(wanted), self.network.as_ref(), self.neighbours()).map_err(ResumeError::Network)?;
            self.network = Some(wanted.clone());
        } else if new_life {
            self.mend_network();
        }
        Ok(())
    }

    /// Whether the gateway can be entered for good among the neighbours.
    fn neighbours(&self) -> Neighbours {
        if self.kernel.is_some() { Neighbours::Permanent } else { Neighbours::Asked }
    }

    /// Puts the network's settings in force again if something has been changed and they are not. That it was changed is remembered until
    /// they are.
    pub(super) fn mend_network(&mut self) {
        let Some(network) = &self.network else { return };
        // Without a watch, something may have.
        self.network_touched |= self.kernel.as_ref().is_none_or(|kernel| kernel.watch.has_changed());
        if !self.network_touched {
            return;
        }
        if !network::is_in_force(network)
            && let Err(error) = network::apply(Some(network), None, self.neighbours())
        {
            tracing::error!(error = chain(&error), "cannot set up the network again");
            return;
        }
        self.network_touched = false;
    }
}

/// Refuses what is malformed or of an older life before anything has changed.
fn check(identity: &Identity, seen: u64) -> Result<[u8; SEED_BYTES], ResumeError> {
    if identity.epoch < seen {
        return Err(ResumeError::OldEpoch { asked: identity.epoch, seen });
    }
    let name = &identity.sandbox_id;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty() || name.len() > MAX_HOST_NAME || !name.chars().all(plain) {
        return Err(ResumeError::Name(name.clone()));
    }
    if let Some(id) = &identity.machine_id
        && !(id.len() == 32 && id.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')))
    {
        return Err(ResumeError::MachineId(id.clone()));
    }
    STANDARD.decode(&identity.entropy).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(ResumeError::Seed)
}

fn set_clock(realtime_ns: u64) -> nix::Result<i64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_nanos(realtime_ns)))?;
    let behind = i128::from(realtime_ns) - i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
    Ok(i64::try_from(behind).unwrap_or(if behind < 0 { i64::MIN } else { i64::MAX }))
}

fn write_files(identity: &Identity, files: &Files) -> io::Result<()> {
    let name = &identity.sandbox_id;
    files.hostname.put(&format!("{name}\n"))?;
    files.hosts.put(&hosts(name))?;
    files.epoch.put(&format!("{}\n", identity.epoch))?;
    // As E2B's agent writes them: without a newline.
    files.sandbox_id.put(name)?;
    files.template_id.put(&identity.template_id)?;
    if let Some(id) = &identity.machine_id {
        files.machine_id.put(&format!("{id}\n"))?;
    }
    if let Some(network) = &identity.network
        && !network.dns.is_empty()
    {
        let lines: String = network.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        files.resolv_conf.put(&lines)?;
    }
    Ok(())
}

fn hosts(name: &str) -> String {
    format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn identity() -> Identity {
        Identity {
            epoch: 3,
            sandbox_id: "iabc".to_owned(),
            template_id: "base".to_owned(),
            entropy: STANDARD.encode([7; 32]),
            realtime_ns: 1,
            machine_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
            nonce: None,
            network: None,
            env: BTreeMap::new(),
            access_token: None,
            default_user: None,
            default_workdir: None,
            volumes: None,
        }
    }

    #[test]
    fn malformed_identities_are_refused_before_anything_changes() {
        assert_eq!(check(&identity(), 3).unwrap(), [7; 32]);
        assert!(matches!(check(&Identity { entropy: "AAAA".to_owned(), ..identity() }, 3), Err(ResumeError::Seed)));
        assert!(matches!(check(&Identity { sandbox_id: "a/b".to_owned(), ..identity() }, 3), Err(ResumeError::Name(_))));
        let machine_id = Some("ABC".to_owned());
        assert!(matches!(check(&Identity { machine_id, ..identity() }, 3), Err(ResumeError::MachineId(_))));
    }

    #[test]
    fn an_older_epoch_is_refused() {
        assert!(matches!(check(&identity(), 4), Err(ResumeError::OldEpoch { asked: 3, seen: 4 })));
    }
}
