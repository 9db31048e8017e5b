"""The same virtual machine without the product: same kernel, agent, root image, devices and size, saved by QEMU's own means.

The guest's agent is asked over its control channel, and commands go to its envd through QEMU's user network.
"""

import base64
import json
import os
import pathlib
import socket
import subprocess
import time
import zlib

from .firkin import start_command
from .host import run, say, wait_for

MEMORY_MIB = 512
TAG = "ready"


def arguments(disk, directory, port, kvm):
    """The product's machine, as its documents have it; only the network is QEMU's own."""
    if kvm:
        machine = "microvm,acpi=on,pcie=off,rtc=on,usb=off,memory-backend=ram"
        device = lambda kind, slot, rest="": f"virtio-{kind}-device{rest}"
        extra = ["-accel", "kvm", "-cpu", "host"]
    else:
        machine = "q35,usb=off,smbus=off,sata=off,graphics=off,memory-backend=ram"
        device = lambda kind, slot, rest="": f"virtio-{kind}-pci,addr=0x{slot:x}{rest}"
        extra = ["-accel", "tcg,tb-size=32", "-cpu", "max", "-device", "vmgenid,guid=auto"]
    rom = "" if kvm else ",romfile="
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", machine, *extra, "-smp", "1", "-m", str(MEMORY_MIB),
        "-object", f"memory-backend-ram,id=ram,size={MEMORY_MIB}M",
        "-qmp", f"unix:{directory}/qmp,server=on,wait=off",
        "-chardev", f"socket,id=control,path={directory}/control,server=on,wait=off",
        "-serial", "null",
        "-device", device("serial", 2, ",id=serial,max_ports=2"),
        "-device", "virtserialport,bus=serial.0,nr=1,chardev=control,name=firkin.control",
        "-blockdev", json.dumps({"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(disk)},
                                 "cache": {"no-flush": True}, "discard": "unmap", "detect-zeroes": "unmap"}),
        "-device", device("blk", 3, ",id=root,drive=disk"),
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:49983",
        "-device", device("net", 4, f",netdev=net,mac=02:00:00:00:00:fc{rom}"),
        "-device", device("rng", 5),
    ]  # fmt: skip


class Control:
    """The agent's control channel: one frame there, one frame back."""

    def __init__(self, path):
        self.path, self.id, self.socket = path, int(time.time()), None

    def connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(self.path))

    def ask(self, seconds, do, **fields):
        """The answer to one call, or `None` if none comes in time."""
        self.id += 1
        payload = json.dumps({"id": self.id, "call": {"do": do, **fields}}).encode()
        self.socket.sendall(b"FKN1" + len(payload).to_bytes(4, "big") + zlib.crc32(payload).to_bytes(4, "big") + payload)
        deadline, seen = time.monotonic() + seconds, b""
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                piece = self.socket.recv(65536)
            except TimeoutError:
                return None
            if not piece:
                raise SystemExit("the machine closed its control channel")
            seen += piece
            while (at := seen.find(b"FKN1")) >= 0 and len(seen) >= at + 12:
                length = int.from_bytes(seen[at + 4 : at + 8], "big")
                if len(seen) < at + 12 + length:
                    break
                answer, seen = json.loads(seen[at + 12 : at + 12 + length]), seen[at + 12 + length :]
                if answer["id"] == self.id:
                    return answer["answer"]
        return None


class Monitor:
    """QEMU's monitor."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := self.lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise SystemExit(f"QEMU refused `{command}`: {answer['error']}")
            if "return" in answer:
                return answer["return"]
        raise SystemExit("QEMU closed its monitor")


class PlainVm:
    """A machine that was booted, made ready and saved into its qcow2 disk; it can be loaded again and again."""

    def __init__(self, scratch, cache, kvm):
        self.directory, self.kvm = scratch / "plain", kvm
        self.directory.mkdir()
        self.disk = self.directory / "disk.qcow2"
        self.cache = cache
        self.process = None
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", cache["rootfs"], self.disk)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.boot()

    def spawn(self, *extra):
        for name in ("qmp", "control"):
            (self.directory / name).unlink(missing_ok=True)
        command = arguments(self.disk, self.directory, self.port, self.kvm) + list(extra)
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def control(self):
        """The control channel, as soon as QEMU listens."""
        control = Control(self.directory / "control")

        def connected():
            if self.process.poll() is not None:
                raise SystemExit(f"QEMU ended: {(self.directory / 'log').read_text()[-2000:]}")
            try:
                control.connect()
            except OSError:
                return False
            return True

        wait_for(connected, "QEMU's control socket", pause=0.0005)
        return control

    def boot(self):
        say("booting the same machine under plain QEMU")
        kernel = ["-kernel", str(self.cache["kernel"]), "-initrd", str(self.cache["initrd"])]
        self.spawn(*kernel, "-append", "console=ttyS0 panic=-1 reboot=t quiet random.trust_cpu=on")
        control = self.control()
        wait_for(lambda: (control.ask(2, "hello") or {}).get("envd_ready"), "the guest's readiness", seconds=120)
        entropy = base64.b64encode(os.urandom(32)).decode()
        network = {"address": "10.0.2.15", "prefix": 24, "gateway": "10.0.2.2", "gateway_mac": "52:55:0a:00:02:02", "dns": []}
        identity = {"epoch": 1, "sandbox_id": "plain", "template_id": "", "entropy": entropy, "realtime_ns": time.time_ns(), "network": network}
        if (control.ask(30, "resume", **identity) or {}).get("is") != "resumed":
            raise SystemExit("the guest did not take an identity")
        # What the product's template has run before its snapshot, this one runs too.
        for _ in self.command("python3 -c 'import json, sys' && true | cat; echo done"):
            pass
        control.ask(60, "shrink")
        monitor = Monitor(self.directory / "qmp")
        said = monitor.ask("human-monitor-command", **{"command-line": f"savevm {TAG}"})
        if said.strip():
            raise SystemExit(f"cannot save the machine: {said}")
        self.kill()

    def command(self, script):
        message = {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", script]}, "stdin": False}
        return start_command(("127.0.0.1", self.port), {}, message)

    def load_ms(self):
        """From the start of QEMU with `-loadvm` to the answer of the guest's agent. The machine runs on."""
        begun = time.perf_counter()
        self.spawn("-loadvm", TAG)
        control = self.control()
        wait_for(lambda: control.ask(2, "hello"), "the loaded guest's answer", seconds=60, pause=0)
        return (time.perf_counter() - begun) * 1000

    def migrate_ms(self):
        """Stops the machine, writes all of it to a file as plain migration does, lets it go on. Returns how long it stood."""
        target = self.directory / "migration"
        monitor = Monitor(self.directory / "qmp")
        # The default limit of 128 MiB/s is for networks.
        monitor.ask("migrate-set-parameters", **{"max-bandwidth": 0})
        begun = time.perf_counter()
        monitor.ask("stop")
        monitor.ask("migrate", uri=f"file:{target}")
        while (status := monitor.ask("query-migrate")["status"]) != "completed":
            if status in ("failed", "cancelled"):
                raise SystemExit("QEMU could not migrate to a file")
            time.sleep(0.001)
        monitor.ask("cont")
        took = (time.perf_counter() - begun) * 1000
        target.unlink()
        return took

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def cached(cache_dir):
    """The newest guest system in the product's cache."""
    newest = lambda pattern: max(pathlib.Path(cache_dir).glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
    found = {"kernel": newest("kernel-v1/*/vmlinuz"), "initrd": newest("initramfs-v1/*/initramfs.cpio"), "rootfs": newest("rootfs-v1/*/rootfs.ext4")}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise SystemExit(f"no {', '.join(missing)} in {cache_dir}: run `firkin quickstart` first")
    return found
