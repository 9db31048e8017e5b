//! QEMU's command line: the one place that knows which devices a machine has.
//!
//! A snapshot's device state fits only a machine of the same devices at the same addresses, so boot and restore share this
//! code and differ in two things: where memory comes from, and whether there is a kernel. All files are given as descriptors,
//! so that QEMU needs no way to any of them: disks and device state as members of descriptor sets (`/dev/fdset/N`), each layer
//! of a disk by itself and not by the name in the header above it; memory and kernel, which QEMU cannot take from a set, by
//! `/proc/self/fd/N`, which looks at the file's own permissions and at no directory's.
//!
//! | machine | when | why |
//! |---|---|---|
//! | q35 without its usual extras | emulated | microvm hangs in one of ten emulated boots: it has no HPET and loses timer ticks |
//! | microvm, virtio-mmio | KVM | smallest device state; kvm-clock and the TSC deadline timer keep time |

use std::{ffi::OsString, fmt::Write, os::fd::RawFd};

use serde_json::{Value, json};

use super::isolation::SANDBOX;
use crate::{Acceleration, CONTROL_PORT, Processor, Shape, qcow2::Format};

/// Prefix of the names of the root disk's block nodes; a number that grows with every switch of overlays follows.
pub(super) const ROOT_NODE: &str = "root-";
/// Name of the character device that keeps the console's tail.
pub(super) const CONSOLE: &str = "console";
/// How much of the console is kept. A power of two, as QEMU's ring buffer demands.
pub(super) const CONSOLE_BYTES: u32 = 64 << 10;
/// Number of the descriptor set that holds the device state.
const STATE_SET: u32 = 1;
/// Number of the descriptor set that holds `/dev/kvm`.
const KVM_SET: u32 = 2;
/// Number of the descriptor set that device state is written to.
pub(super) const STATE_OUT_SET: u32 = 3;
/// Number of the descriptor set that the lowest layer of a root disk is in; the layers above follow.
const FIRST_LAYER_SET: u32 = 16;
/// Number of the descriptor set that holds the file of the first root node; those of later ones follow.
const FIRST_ROOT_SET: u32 = 1024;
/// Where the device state is read from: a member of [`STATE_SET`].
pub(super) const STATE_URI: &str = "file:/dev/fdset/1";
/// Room for translated code, of which only what is filled takes memory. A full cache is emptied whole: a guest that has run Python
/// fills 56 MiB, and with less room what was warm is translated again by the next command, for hundreds of milliseconds.
pub(super) const CODE_CACHE_MIB: u32 = 128;
/// The kernel command line of every boot: a panic or a reboot must end the machine at once.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t quiet random.trust_cpu=on";

/// Added where the machine is emulated: there is no speculation to mitigate, and the mitigations are code to translate.
const EMULATED_CMDLINE: &str = " mitigations=off";

/// Where guest memory comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum MemoryBackend {
    /// This file, which is written: it becomes a template's memory.
    File(RawFd),
    /// A private view of this file, which is never written, not even by a discard.
    Clone(RawFd),
    /// Nothing that stays.
    Anonymous,
}

/// How the machine begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin<'a> {
    /// By booting a kernel.
    Boot { kernel: RawFd, initrd: RawFd, cmdline: &'a str },
    /// By waiting for this device state.
    Incoming { state: RawFd },
    /// By this firmware, and with nothing else to run.
    Firmware { image: RawFd },
    /// Stopped, before its first instruction.
    Stopped,
}

/// The guest's interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nic {
    pub(super) tap: RawFd,
    pub(super) mac: [u8; 6],
    /// Whether it can be asked to announce itself: snapshots of earlier builds know it so.
    pub(super) announces: bool,
}

/// A machine, as far as its command line goes.
#[derive(Debug)]
pub(super) struct Hardware<'a> {
    pub(super) machine: &'a str,
    pub(super) acceleration: Acceleration,
    pub(super) processor: Processor,
    /// `/dev/kvm`, opened by us: the process itself may not.
    pub(super) kvm: Option<RawFd>,
    pub(super) shape: Shape,
    pub(super) memory: MemoryBackend,
    pub(super) begin: Begin<'a>,
    /// Listening sockets.
    pub(super) monitor: RawFd,
    pub(super) control: RawFd,
    pub(super) nic: Option<Nic>,
    pub(super) root_disk: Option<&'a DiskNumbers<'a>>,
}

/// A root disk by its descriptors.
#[derive(Debug)]
pub(super) struct DiskNumbers<'a> {
    /// The name of the overlay's file, which QEMU keeps for whoever adopts it.
    pub(super) name: &'a str,
    /// The overlay, to be written.
    pub(super) overlay: RawFd,
    /// What it lies over, lowest first.
    pub(super) layers: Vec<Layer>,
}

/// One layer of a root disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    pub(super) fd: RawFd,
    pub(super) format: Format,
    /// A disk of the host, not a file: QEMU has another driver for it.
    pub(super) is_device: bool,
}

/// The machine type for an acceleration: an alias, which QEMU resolves to its newest version of it.
pub(super) fn machine_alias(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "microvm",
        Acceleration::Tcg | Acceleration::Gvisor | Acceleration::None => "q35",
    }
}

/// The CPU model for an acceleration.
pub(super) fn cpu_model(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "host",
        Acceleration::Tcg | Acceleration::Gvisor | Acceleration::None => "max",
    }
}

/// Features that the model has and our machines do not. An emulator pays for a fifth level of page tables at each miss of its
/// translation cache, and for SMAP at each copy between the guest's kernel and its programs; neither protects a host.
/// Virtualisation of its own is for guests that were asked for it.
pub(super) fn features_left_out(acceleration: Acceleration, processor: Processor) -> &'static [&'static str] {
    match (acceleration, processor) {
        (Acceleration::Kvm, Processor::Plain) => &["svm", "vmx"],
        (Acceleration::Kvm, Processor::Nested) => &[],
        (Acceleration::Tcg | Acceleration::Gvisor | Acceleration::None, Processor::Plain) => &["la57", "smap", "svm"],
        (Acceleration::Tcg | Acceleration::Gvisor | Acceleration::None, Processor::Nested) => &["la57", "smap"],
    }
}

/// All arguments, in order.
pub(super) fn arguments(hardware: &Hardware<'_>) -> Vec<OsString> {
    let mut line = Line(Vec::with_capacity(64));
    line.flags("-nodefaults -no-user-config -no-reboot -display none");
    line.pair("-sandbox", SANDBOX);
    base(&mut line, hardware);
    // Said here, it need not be said over QMP while somebody waits.
    line.pair("-global", "migration.x-events=on");
    memory(&mut line, hardware);
    channels(&mut line, hardware);
    devices(&mut line, hardware);
    begin(&mut line, hardware);
    line.0
}

struct Line(Vec<OsString>);

impl Line {
    fn flags(&mut self, flags: &str) {
        self.0.extend(flags.split(' ').map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

fn base(line: &mut Line, hardware: &Hardware<'_>) {
    let Shape { vcpus, memory_mib } = hardware.shape;
    let features = match hardware.acceleration {
        Acceleration::Kvm => "acpi=on,pcie=off,rtc=on,usb=off",
        Acceleration::Tcg | Acceleration::Gvisor | Acceleration::None => "usb=off,smbus=off,sata=off,graphics=off",
    };
    line.pair("-machine", format!("{},{features},memory-backend=ram,dump-guest-core=off", hardware.machine));
    match hardware.kvm {
        Some(kvm) => {
            line.pair("-add-fd", format!("fd={kvm},set={KVM_SET}"));
            line.pair("-accel", format!("kvm,device=/dev/fdset/{KVM_SET}"));
        }
        None => line.pair("-accel", format!("tcg,tb-size={CODE_CACHE_MIB}")),
    }
    let features = features_left_out(hardware.acceleration, hardware.processor).iter().map(|feature| format!(",{feature}=off"));
    line.pair("-cpu", format!("{}{}", cpu_model(hardware.acceleration), features.collect::<String>()));
    line.pair("-smp", vcpus.to_string());
    line.pair("-m", memory_mib.to_string());
    if hardware.acceleration != Acceleration::Kvm {
        // A guest that puts itself to sleep would not be woken by anybody.
        line.pair("-global", "ICH9-LPC.disable_s3=1");
        line.pair("-global", "ICH9-LPC.disable_s4=1");
    }
}

fn memory(line: &mut Line, hardware: &Hardware<'_>) {
    let size = hardware.shape.memory_mib;
    line.pair(
        "-object",
        match hardware.memory {
            MemoryBackend::File(fd) => format!("memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{fd},share=on"),
            // Without `readonly`, a discard of guest memory punches holes into the file that all clones share. `rom=off` keeps
            // the private view writable.
            MemoryBackend::Clone(fd) => {
                format!("memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{fd},share=off,readonly=on,rom=off")
            }
            MemoryBackend::Anonymous => format!("memory-backend-ram,id=ram,size={size}M"),
        },
    );
}

/// Sockets that we listen on and QEMU accepts from: a later process of ours can connect again.
fn channels(line: &mut Line, hardware: &Hardware<'_>) {
    line.pair("-chardev", format!("socket,id=monitor,fd={},server=on,wait=off", hardware.monitor));
    line.pair("-mon", "chardev=monitor,mode=control");
    line.pair("-chardev", format!("socket,id=control,fd={},server=on,wait=off", hardware.control));
    line.pair("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_BYTES}"));
    line.pair("-serial", format!("chardev:{CONSOLE}"));
}

fn devices(line: &mut Line, hardware: &Hardware<'_>) {
    let pci = hardware.acceleration != Acceleration::Kvm;
    // Fixed addresses: a device that is added later must not move the ones that snapshots know.
    let device = |kind: &str, slot: u32, options: &str| {
        if pci { format!("virtio-{kind}-pci,addr=0x{slot:x}{options}") } else { format!("virtio-{kind}-device{options}") }
    };
    line.pair("-device", device("serial", 2, ",id=serial,max_ports=2"));
    line.pair("-device", format!("virtserialport,bus=serial.0,nr=1,chardev=control,name={CONTROL_PORT}"));
    if let Some(disk) = hardware.root_disk {
        root_disk(line, disk);
        // The guest gets the error of a full host disk; the default would stop the machine without a word.
        line.pair("-device", device("blk", 3, &format!(",id=root,drive={ROOT_NODE}0,werror=report,rerror=report")));
    }
    if let Some(Nic { tap, mac, announces }) = hardware.nic {
        let mut options = String::from(",netdev=net,mac=");
        for (n, byte) in mac.iter().enumerate() {
            write!(options, "{}{byte:02x}", if n == 0 { "" } else { ":" }).expect("a string takes everything");
        }
        options.push_str(if pci { ",romfile=" } else { "" });
        options.push_str(if announces { "" } else { ",guest_announce=off" });
        line.pair("-netdev", format!("tap,id=net,fd={tap},vhost=off"));
        line.pair("-device", device("net", 4, &options));
    }
    line.pair("-device", device("rng", 5, ""));
    if pci {
        line.pair("-device", "vmgenid,guid=auto");
    }
}

/// The overlay and every layer below it, each by a descriptor set of its own.
fn root_disk(line: &mut Line, disk: &DiskNumbers<'_>) {
    let mut below = Value::Null;
    for (&Layer { fd, format, is_device }, set) in disk.layers.iter().zip(FIRST_LAYER_SET..FIRST_ROOT_SET) {
        line.pair("-add-fd", format!("fd={fd},set={set}"));
        let mut node = json!({"driver": format.name(), "read-only": true, "file": file(set)});
        if is_device {
            node["file"]["driver"] = "host_device".into();
        }
        if format == Format::Qcow2 {
            node["backing"] = below;
        }
        below = node;
    }
    // A comma in a value is written twice.
    let name = disk.name.replace(',', ",,");
    line.pair("-add-fd", format!("fd={},set={},opaque={name}", disk.overlay, root_set(0)));
    line.pair("-blockdev", root_node(0, below).to_string());
}

/// The name of the root disk's block node after `number` switches.
pub(super) fn root_name(number: u32) -> String {
    format!("{ROOT_NODE}{number}")
}

/// More switches than any machine lives to see.
pub(super) const MAX_ROOT_NODE: u32 = 1 << 30;

/// The descriptor set that the file of that node is in.
pub(super) fn root_set(number: u32) -> u32 {
    FIRST_ROOT_SET + number
}

/// The description of a root disk's block node over `below`, or over one that is open already. Its data need not survive the
/// host, so a guest's flush is no host's flush.
pub(super) fn root_node(number: u32, below: Value) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": root_name(number),
        "file": file(root_set(number)),
        "backing": below,
        "cache": {"no-flush": true},
        "discard": "unmap",
        "detect-zeroes": "unmap",
    })
}

/// A member of a descriptor set as a block node.
fn file(set: u32) -> Value {
    json!({"driver": "file", "filename": format!("/dev/fdset/{set}"), "locking": "off"})
}

fn begin(line: &mut Line, hardware: &Hardware<'_>) {
    match hardware.begin {
        Begin::Boot { kernel, initrd, cmdline } => {
            line.pair("-kernel", format!("/proc/self/fd/{kernel}"));
            line.pair("-initrd", format!("/proc/self/fd/{initrd}"));
            let emulated = if hardware.acceleration == Acceleration::Kvm { "" } else { EMULATED_CMDLINE };
            line.pair("-append", format!("{CMDLINE}{emulated} {cmdline}").trim_end());
            // Stays at the guest's end, so that we can ask what the guest said last.
            line.pair("-action", "shutdown=pause");
        }
        Begin::Incoming { state } => {
            line.pair("-add-fd", format!("fd={state},set={STATE_SET}"));
            line.flags("-incoming defer -S");
        }
        Begin::Firmware { image } => line.pair("-bios", format!("/proc/self/fd/{image}")),
        Begin::Stopped => line.flags("-S"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(acceleration: Acceleration) -> Hardware<'static> {
        Hardware {
            machine: "m",
            acceleration,
            processor: Processor::Plain,
            kvm: (acceleration == Acceleration::Kvm).then_some(9),
            shape: Shape { vcpus: 2, memory_mib: 512 },
            memory: MemoryBackend::Clone(5),
            begin: Begin::Incoming { state: 6 },
            monitor: 3,
            control: 4,
            nic: Some(Nic { tap: 7, mac: [2, 0, 0, 0, 0, 0xfc], announces: false }),
            root_disk: None,
        }
    }

    #[test]
    fn a_disk_is_its_descriptors_and_no_path() {
        let layer = |fd, format, is_device| Layer { fd, format, is_device };
        let layers = vec![layer(10, Format::Raw, true), layer(11, Format::Qcow2, false)];
        let disk = DiskNumbers { name: "a,b.qcow2", overlay: 12, layers };
        let text = text(&Hardware { root_disk: Some(&disk), ..hardware(Acceleration::Tcg) });
        assert!(text.contains("-add-fd fd=10,set=16 -add-fd fd=11,set=17 -add-fd fd=12,set=1024,opaque=a,,b.qcow2 -blockdev "));
        let node = text.split("-blockdev ").nth(1).and_then(|rest| rest.split(" -device").next()).unwrap();
        let node: Value = serde_json::from_str(node).unwrap();
        let names = [&node, &node["backing"], &node["backing"]["backing"]].map(|node| node["file"]["filename"].clone());
        assert_eq!(names, ["/dev/fdset/1024", "/dev/fdset/17", "/dev/fdset/16"]);
        let drivers = [&node["backing"], &node["backing"]["backing"]].map(|node| node["file"]["driver"].clone());
        assert_eq!(drivers, ["file", "host_device"]);
        let raw = &node["backing"]["backing"];
        assert_eq!((&raw["driver"], raw.get("backing")), (&json!("raw"), None));
        assert!(!text.contains("/srv"), "{text}");
    }

    fn text(hardware: &Hardware<'_>) -> String {
        arguments(hardware).iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_clone_cannot_write_to_its_base_and_has_no_kernel() {
        for acceleration in [Acceleration::Tcg, Acceleration::Kvm] {
            let text = text(&hardware(acceleration));
            assert!(text.contains("mem-path=/proc/self/fd/5,share=off,readonly=on,rom=off"), "{text}");
            assert!(text.contains("-add-fd fd=6,set=1 -incoming defer -S"), "{text}");
            assert!(!text.contains("-kernel"), "{text}");
            assert!(text.contains("-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"), "{text}");
        }
    }

    #[test]
    fn boot_and_restore_have_the_same_devices() {
        for acceleration in [Acceleration::Tcg, Acceleration::Kvm] {
            let restore = hardware(acceleration);
            let boot = Hardware {
                memory: MemoryBackend::File(5),
                begin: Begin::Boot { kernel: 10, initrd: 11, cmdline: "x=1" },
                ..hardware(acceleration)
            };
            let devices = |hardware: &Hardware<'_>| {
                let arguments = arguments(hardware);
                arguments.windows(2).filter(|pair| pair[0] == "-device").map(|pair| pair[1].clone()).collect::<Vec<_>>()
            };
            assert_eq!(devices(&boot), devices(&restore));
            assert!(text(&boot).contains(" x=1 -action shutdown=pause"));
        }
    }

    #[test]
    fn kvm_is_reached_by_descriptor_and_has_no_pci_devices() {
        let text = text(&hardware(Acceleration::Kvm));
        assert!(text.contains("-add-fd fd=9,set=2 -accel kvm,device=/dev/fdset/2 -cpu host,svm=off,vmx=off "), "{text}");
        assert!(text.contains("-device virtio-net-device,netdev=net,mac=02:00:00:00:00:fc,guest_announce=off "), "{text}");
        assert!(!text.contains("-pci"), "{text}");
    }

    #[test]
    fn virtualisation_is_shown_to_guests_that_asked_for_it() {
        for (acceleration, feature) in [(Acceleration::Kvm, ",svm=off,vmx=off "), (Acceleration::Tcg, ",svm=off ")] {
            assert!(text(&hardware(acceleration)).contains(feature));
            let nested = Hardware { processor: Processor::Nested, ..hardware(acceleration) };
            assert!(!text(&nested).contains("svm") && !text(&nested).contains("vmx"), "{}", text(&nested));
        }
    }

    #[test]
    fn only_guests_of_earlier_builds_can_announce_themselves() {
        for acceleration in [Acceleration::Kvm, Acceleration::Tcg] {
            let of = |announces| {
                let nic = Some(Nic { tap: 7, mac: [2, 0, 0, 0, 0, 0xfc], announces });
                text(&Hardware { nic, ..hardware(acceleration) })
            };
            assert!(of(false).contains(",guest_announce=off"));
            assert!(!of(true).contains("guest_announce"));
        }
    }
}
