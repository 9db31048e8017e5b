//! Which snapshots an engine can bring back: what is stamped on a snapshot, and how stamps are compared.
//!
//! A guest that wakes up must find the machine that it fell asleep on. That is the machine type, the layout of the devices' state,
//! and the CPU as the guest sees it. It is not the revision of a package: a security update that leaves these alone must not strand
//! the memory of paused sandboxes. Within one release series (`10.0`) QEMU keeps its streams readable, and the digest of the
//! devices' layout says so for this very build; across series a machine type without versions, such as `microvm`, promises nothing.

use serde::{Deserialize, Serialize};

use crate::Acceleration;

/// The processor that a guest is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Processor {
    /// Without virtualisation of its own: what a guest does not see, it cannot attack.
    #[default]
    Plain,
    /// With what the host can give, so that the guest can run guests.
    Nested,
}

/// The engine and host that made a snapshot. [`Compatibility::processor`] says whether it can be restored here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Engine name, e.g. `qemu`.
    pub engine: String,
    /// Engine version, e.g. `10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)`. Only its first two numbers must agree.
    pub version: String,
    /// Machine type, e.g. `pc-q35-10.0`.
    pub machine: String,
    /// How instructions are executed.
    pub acceleration: Acceleration,
    /// Digest of the CPU that the guest sees: two hosts with equal values offer guests the same CPU.
    pub cpu: String,
    /// Layout of the devices' state, digested; none in snapshots of earlier builds, which did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<String>,
    /// The program that made it, for people; none in snapshots of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Whether the guest tells its neighbours where it is each time that it was restored, as a guest does that has moved to another host. True in
    /// snapshots of earlier builds, and no longer wanted: a guest's one neighbour is its host, which knows.
    #[serde(default = "of_earlier_builds", skip_serializing_if = "Clone::clone")]
    pub announces: bool,
}

fn of_earlier_builds() -> bool {
    true
}

/// The part of a [`Fingerprint`] that must be the same: what results that depend on the engine may be kept under.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Kind<'a> {
    engine: &'a str,
    series: String,
    machine: &'a str,
    acceleration: Acceleration,
    cpu: &'a str,
    devices: Option<&'a str>,
    #[serde(skip_serializing_if = "Clone::clone")]
    announces: bool,
}

impl Fingerprint {
    /// The part of it that must be the same.
    pub fn kind(&self) -> Kind<'_> {
        let Self { engine, version, machine, acceleration, cpu, devices, program: _, announces } = self;
        let (series, devices) = (series(version), devices.as_deref());
        Kind { engine, series, machine, acceleration: *acceleration, cpu, devices, announces: *announces }
    }
}

/// `10.0` of `10.0.2 (Debian 1:10.0.2+ds-2)`.
fn series(version: &str) -> String {
    let number = version.split_whitespace().next().unwrap_or_default();
    number.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")
}

/// The fingerprints that an engine puts on snapshots, and those that it accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compatibility {
    /// The stamp of guests with a plain processor.
    pub plain: Fingerprint,
    /// CPU of guests that may run guests.
    pub nested_cpu: String,
    /// The digest by which earlier builds knew that CPU, which they gave to every guest.
    #[serde(default)]
    pub earlier_cpus: Vec<String>,
}

/// A difference between a snapshot's host and this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The property that differs.
    pub what: &'static str,
    /// Its value in the snapshot.
    pub made_with: String,
    /// Its value here.
    pub here: String,
}

impl From<Fingerprint> for Compatibility {
    /// An engine whose guests all have the same processor.
    fn from(plain: Fingerprint) -> Self {
        Self { nested_cpu: plain.cpu.clone(), plain, earlier_cpus: Vec::new() }
    }
}

impl Compatibility {
    /// The stamp of a guest with this processor.
    pub fn fingerprint(&self, processor: Processor) -> Fingerprint {
        // Whatever an earlier build remembered of this host.
        let plain = Fingerprint { announces: false, ..self.plain.clone() };
        match processor {
            Processor::Plain => plain,
            Processor::Nested => Fingerprint { cpu: self.nested_cpu.clone(), ..plain },
        }
    }

    /// The processor with which a guest of this stamp is restored here.
    pub fn processor(&self, made: &Fingerprint) -> Result<Processor, Mismatch> {
        let here = &self.plain;
        let mismatch = |what, made_with: &str, here: &str| Mismatch { what, made_with: made_with.into(), here: here.into() };
        if made.engine != here.engine {
            return Err(mismatch("engine", &made.engine, &here.engine));
        }
        if series(&made.version) != series(&here.version) {
            return Err(mismatch("engine version", &made.version, &here.version));
        }
        if made.machine != here.machine {
            return Err(mismatch("machine type", &made.machine, &here.machine));
        }
        if made.acceleration != here.acceleration {
            return Err(mismatch("acceleration", &made.acceleration.to_string(), &here.acceleration.to_string()));
        }
        if let (Some(made), Some(here)) = (&made.devices, &here.devices)
            && made != here
        {
            return Err(mismatch("layout of device state", made, here));
        }
        if made.cpu == here.cpu {
            Ok(Processor::Plain)
        } else if made.cpu == self.nested_cpu || self.earlier_cpus.contains(&made.cpu) {
            Ok(Processor::Nested)
        } else {
            Err(mismatch("CPU", &made.cpu, &here.cpu))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Compatibility {
        let plain = Fingerprint {
            engine: "qemu".into(),
            version: "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)".into(),
            machine: "microvm".into(),
            acceleration: Acceleration::Kvm,
            cpu: "plain".into(),
            devices: Some("d".into()),
            program: Some("qemu-system-x86_64-microvm".into()),
            announces: false,
        };
        Compatibility { plain, nested_cpu: "nested".into(), earlier_cpus: vec!["earlier".into()] }
    }

    fn made(change: impl FnOnce(&mut Fingerprint)) -> Result<Processor, &'static str> {
        let mut made = here().plain;
        change(&mut made);
        here().processor(&made).map_err(|mismatch| mismatch.what)
    }

    #[test]
    fn a_package_update_strands_no_memory() {
        assert_eq!(made(|made| made.version = "10.0.2 (Debian 1:10.0.2+ds-2+deb13u2)".into()), Ok(Processor::Plain));
        assert_eq!(made(|made| made.version = "10.0.8 (Debian 1:10.0.8+ds-0+deb13u1)".into()), Ok(Processor::Plain));
        assert_eq!(made(|made| made.program = Some("qemu-system-x86_64".into())), Ok(Processor::Plain));
        assert_eq!(made(|made| made.version = "10.1.2".into()), Err("engine version"));
        assert_eq!(made(|made| made.version = "100.0.2".into()), Err("engine version"));
    }

    #[test]
    fn what_a_guest_would_notice_is_refused() {
        assert_eq!(made(|made| made.devices = Some("e".into())), Err("layout of device state"));
        assert_eq!(made(|made| made.machine = "q35".into()), Err("machine type"));
        assert_eq!(made(|made| made.acceleration = Acceleration::Tcg), Err("acceleration"));
        assert_eq!(made(|made| made.cpu = "another".into()), Err("CPU"));
        assert_eq!(made(|made| made.engine = "fake".into()), Err("engine"));
    }

    #[test]
    fn a_guest_keeps_the_processor_that_it_was_shown() {
        assert_eq!(made(|_| ()), Ok(Processor::Plain));
        assert_eq!(made(|made| made.cpu = "nested".into()), Ok(Processor::Nested));
        for processor in [Processor::Plain, Processor::Nested] {
            assert_eq!(here().processor(&here().fingerprint(processor)), Ok(processor));
        }
    }

    #[test]
    fn a_snapshot_of_an_earlier_build_is_read_and_restored() {
        let text = r#"{"engine": "qemu", "version": "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)", "machine": "microvm",
            "acceleration": "kvm", "cpu": "earlier"}"#;
        let made: Fingerprint = serde_json::from_str(text).unwrap();
        assert_eq!(here().processor(&made), Ok(Processor::Nested));
    }

    #[test]
    fn what_is_kept_is_kept_over_an_update() {
        let mut updated = here().plain;
        updated.version = "10.0.3".into();
        updated.program = None;
        assert_eq!(updated.kind(), here().plain.kind());
    }

    #[test]
    fn a_guest_of_an_earlier_build_announces_itself_and_is_restored_all_the_same() {
        let mut made = serde_json::to_value(here().plain).unwrap();
        assert_eq!(made.as_object_mut().unwrap().remove("announces"), Some(false.into()));
        let earlier: Fingerprint = serde_json::from_value(made.clone()).unwrap();
        assert!(earlier.announces);
        assert_eq!(here().processor(&earlier), Ok(Processor::Plain));
        assert_eq!(serde_json::to_value(&earlier).unwrap(), made, "what is cut out of it says the same");
        assert_ne!(earlier.kind(), here().plain.kind(), "what was built then is built again");
        // Of a host that was probed by an earlier build.
        let remembered = Compatibility { plain: earlier, ..here() };
        assert!(!remembered.fingerprint(Processor::Plain).announces);
    }
}
