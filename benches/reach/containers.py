"""The same root file system in containers: gVisor restored from a checkpoint, and a cold `runc`.

Both get the guest image of the product, mounted read-only, so that Python and everything it reads are the same files.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import time

from .host import machines, run, say, wait_for

# Prints all the time: the first output after a restore is the restored process's own.
TICKER = "import time\nwhile True:\n    print('tick', flush=True)\n    time.sleep(0.005)\n"


def bundle(where, rootfs, words):
    where.mkdir(parents=True)
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"]},
    ]
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": words,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "reach",
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
    }
    (where / "config.json").write_text(json.dumps(config))
    return where


class GVisor:
    """A Python process that prints, frozen once, restored as often as asked."""

    def __init__(self, scratch, rootfs):
        self.root = scratch / "runsc"
        self.root.mkdir()
        self.image = scratch / "checkpoint"
        self.bundle = bundle(scratch / "runsc-bundle", rootfs, ["/usr/bin/python3", "-c", TICKER])
        self.command = ["runsc", "--root", self.root, "--network=none", "--ignore-cgroups", "--platform=systrap"]
        self.count = 0
        version = run("runsc", "--version").stdout.split("\n")[0]
        flags = run("runsc", "checkpoint", "--help", check=False)
        self.compression = ["-compression=none"] if "compression" in flags.stdout + flags.stderr else []
        self.version = f"{version}{', -compression none' if self.compression else ''}"
        self.freeze()

    def freeze(self):
        say(f"checkpointing a Python process with {self.version}")
        with self.started("run", "--bundle", self.bundle) as (name, output):
            if not output.readline():
                raise SystemExit("gVisor's process printed nothing")
            run(*self.command, "checkpoint", *self.compression, f"-image-path={self.image}", name)

    @contextlib.contextmanager
    def started(self, *words):
        self.count += 1
        name = f"reach-{os.getpid()}-{self.count}"
        verb, *options = words
        command = [str(word) for word in [*self.command, verb, *options, name]]
        log = self.root.parent / "runsc.log"
        with open(log, "ab") as errors:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield name, process.stdout
        finally:
            run(*self.command, "kill", name, "KILL", check=False)
            process.stdout.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            run(*self.command, "delete", "--force", name, check=False)

    def restore_ms(self):
        """From the start of `runsc restore` to the first byte of the restored process."""
        begun = time.perf_counter()
        with self.started("restore", f"-image-path={self.image}", "--bundle", self.bundle) as (_, output):
            byte = output.read(1)
            took = (time.perf_counter() - begun) * 1000
        if not byte:
            raise SystemExit(f"`runsc restore` printed nothing: {(self.root.parent / 'runsc.log').read_text()[-2000:]}")
        return took


class Runc:
    """`echo` in a container that is made for it."""

    def __init__(self, scratch, rootfs):
        self.root = scratch / "runc"
        self.bundle = bundle(scratch / "runc-bundle", rootfs, ["/bin/echo", "ready"])
        self.count = 0
        self.version = run("runc", "--version").stdout.split("\n")[0]

    def echo_ms(self):
        """From the start of `runc run` to the first byte of `echo`."""
        self.count += 1
        name = f"reach-{os.getpid()}-{self.count}"
        command = ["runc", "--root", str(self.root), "run", "--bundle", str(self.bundle), name]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        byte = process.stdout.read(1)
        took = (time.perf_counter() - begun) * 1000
        errors = process.communicate(timeout=60)[1]
        if not byte:
            raise SystemExit(f"`runc run` printed nothing: {errors.decode()[-2000:]}")
        return took


def leftovers(except_for):
    """Processes of either runtime that are still there and are no sandboxes of these state directories."""
    ours = {pathlib.Path(f"/proc/{pid}").stat().st_uid for state_dir in except_for for pid in machines(state_dir)}
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "comm").read_bytes().startswith((b"runsc", b"runc")) and path.stat().st_uid not in ours:
                found.append(path.name)
    return found


def settled(except_for=()):
    """Waits until what a container ran in has gone."""
    wait_for(lambda: not leftovers(except_for), "the end of the last container", seconds=20)
