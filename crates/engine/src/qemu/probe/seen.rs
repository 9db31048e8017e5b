//! What a guest sees of QEMU, digested: its CPU, and the layout of its devices' state.
//!
//! Two builds of one QEMU differ in the names of what neither of them shows: `hv-syndbg` is a property of Debian's full binary only.
//! So what is off is no part of the digest, nor what belongs to Hyper-V's interface, which is never on here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::Acceleration;

/// Prefix of the properties of Hyper-V's interface. Those that are no switches have values also while it is off.
const HYPERV: &str = "hv-";
/// The property that only one of Debian's two binaries knows.
const SYNDBG: &str = "hv-syndbg";

/// Types whose state is in the streams of all our machines, by their names in `-dump-vmstate`.
const DEVICES: [&str; 17] = [
    "acpi-ged",
    "fw_cfg",
    "fw_cfg_io",
    "ioapic",
    "isa-i8259",
    "isa-pit",
    "isa-serial",
    "kvm-i8259",
    "kvm-ioapic",
    "kvm-pit",
    "kvmclock",
    "kvmvapic",
    "mc146818rtc",
    "virtio-blk-device",
    "virtio-net-device",
    "virtio-rng-device",
    "virtio-serial-device",
];
/// Types that an emulated machine has beside them. Debian's small binary does not know them.
const EMULATED_DEVICES: [&str; 6] = ["ICH9-LPC", "hpet", "i8042", "mch", "port92", "vmgenid"];

/// The properties of an expanded CPU model.
fn properties(expansion: &Value) -> Map<String, Value> {
    expansion["model"]["props"].as_object().cloned().unwrap_or_default()
}

/// A digest of what a guest sees of a CPU model.
pub(super) fn cpu(expansion: &Value) -> String {
    let mut properties = properties(expansion);
    properties.retain(|name, value| *value != json!(false) && !name.starts_with(HYPERV));
    digest(&properties)
}

/// What earlier builds made of it: a digest of all names and values. They used the full binary, so its names count also where
/// another is used now.
pub(super) fn earlier_cpus(expansion: &Value) -> Vec<String> {
    let mut properties = properties(expansion);
    let as_it_is = digest(&properties);
    properties.entry(SYNDBG).or_insert(json!(false));
    let of_the_full_binary = digest(&properties);
    if as_it_is == of_the_full_binary { vec![as_it_is] } else { vec![as_it_is, of_the_full_binary] }
}

/// A digest of the layout of our devices' state, from what `-dump-vmstate` wrote. Optional sections are no part of it: which there
/// are depends on devices that a build knows and our machines do not have.
pub(super) fn devices(dump: &Value, acceleration: Acceleration) -> Option<String> {
    let all = dump.as_object()?;
    let more: &[&str] = match acceleration {
        Acceleration::Kvm => &[],
        Acceleration::Tcg | Acceleration::Gvisor | Acceleration::None => &EMULATED_DEVICES,
    };
    let layout = |&name: &&str| Some((name.to_owned(), without_subsections(all.get(name)?.clone())));
    let ours: Map<String, Value> = DEVICES.iter().chain(more).filter_map(layout).collect();
    (!ours.is_empty()).then(|| digest(&ours))
}

fn without_subsections(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.remove("Subsections");
            for field in fields.values_mut() {
                *field = without_subsections(field.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_subsections(item.take());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}

/// In an order of our own: QEMU's is none.
fn digest(properties: &Map<String, Value>) -> String {
    let ordered: BTreeMap<&String, &Value> = properties.iter().collect();
    let mut hasher = blake3::Hasher::new();
    for (name, value) in ordered {
        hasher.update(format!("{name}={value}\n").as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expansion(properties: Value) -> Value {
        json!({"model": {"name": "base", "props": properties}})
    }

    #[test]
    fn two_builds_show_a_guest_the_same() {
        let full =
            expansion(json!({"avx2": true, "svm": false, "level": 16, "hv-syndbg": false, "hv-spinlocks": 4_294_967_295_u32}));
        let small = expansion(json!({"avx2": true, "level": 16, "hv-spinlocks": 0}));
        assert_eq!(cpu(&full), cpu(&small));
        let without = expansion(json!({"avx2": false, "level": 16}));
        assert_ne!(cpu(&full), cpu(&without));
        assert_ne!(cpu(&full), cpu(&expansion(json!({"avx2": true, "level": 13}))));
    }

    #[test]
    fn what_the_full_binary_made_is_known_to_the_small_one() {
        let full = expansion(json!({"avx2": true, "svm": true, "hv-syndbg": false}));
        let small = expansion(json!({"avx2": true, "svm": true}));
        let [made] = earlier_cpus(&full).try_into().unwrap();
        assert!(earlier_cpus(&small).contains(&made));
    }

    #[test]
    fn a_layout_is_that_of_the_devices_that_machines_have() {
        let dump = |fields: Value, subsections: Value, other: u32| {
            let serial =
                json!({"version_id": 3, "Description": {"name": "serial", "Fields": fields, "Subsections": subsections}});
            let other = json!({"version_id": other});
            json!({"isa-serial": serial, "hpet": other, "vmschkmachine": {"Name": "x"}})
        };
        let (small, large) = (json!([{"field": "ier", "size": 1}]), json!([{"field": "ier", "size": 2}]));
        let with_kvm = |fields: &Value, subsections: Value, other| {
            devices(&dump(fields.clone(), subsections, other), Acceleration::Kvm).unwrap()
        };
        let one = with_kvm(&small, json!([]), 1);
        assert_eq!(with_kvm(&small, json!([{"name": "tsr"}]), 2), one);
        assert_ne!(with_kvm(&large, json!([]), 1), one);
        let emulated = |other| devices(&dump(small.clone(), json!([]), other), Acceleration::Tcg).unwrap();
        assert_ne!(emulated(1), emulated(2));
        assert_eq!(devices(&json!({"e1000": {}}), Acceleration::Kvm), None);
    }
}
