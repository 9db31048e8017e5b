"""What the harness does to this host, and how all of it is undone: programs, packages, mounts, counts of what exists."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time


def say(text):
    """One line for whoever watches; results go to standard output, this does not."""
    print(text, file=sys.stderr, flush=True)


def run(*command, check=True, timeout=120, **options):
    """Runs a program to its end and returns what it said."""
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    done = subprocess.run([str(word) for word in command], timeout=timeout, text=True, check=False, **options)
    if check and done.returncode != 0:
        raise SystemExit(f"`{' '.join(map(str, command))}` ended with status {done.returncode}: {(done.stderr or '').strip()[-2000:]}")
    return done


def wait_for(condition, what, seconds=60, pause=0.02):
    """Waits until `condition()` is true and returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not happen within {seconds} s")
        time.sleep(pause)
    return found


def own_mount_namespace():
    """Starts this program again in a mount namespace of its own: what is mounted there ends with it, whatever happens."""
    if os.environ.get("FIRKIN_REACH_NAMESPACE") != "1":
        unshare = shutil.which("unshare") or sys.exit("`unshare` of util-linux is missing")
        os.environ["FIRKIN_REACH_NAMESPACE"] = "1"
        os.execv(unshare, [unshare, "--mount", "--propagation", "private", sys.executable, *sys.argv])


def newest(package):
    """The source that offers a newer version of a package than the default one, as apt's option, if there is one."""
    policy = run("apt-cache", "policy", package).stdout
    return ["-t", "bookworm-backports"] if "backports" in policy else []


def need(program, package):
    """Installs a package of Debian's if its program is missing."""
    if shutil.which(program):
        return
    say(f"installing {package} from Debian: the comparison needs `{program}`")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *newest(package), package]
    if run(*install, check=False, timeout=600, env=environment).returncode != 0:
        run("apt-get", "update", "-q", timeout=600, env=environment)
        run(*install, timeout=600, env=environment)


@contextlib.contextmanager
def mounted(image, where):
    """A file system image, read-only."""
    where.mkdir(parents=True)
    run("mount", "-o", "loop,ro,noload", image, where)
    try:
        yield where
    finally:
        run("umount", where)


@contextlib.contextmanager
def temporary(where):
    """Memory to write to, at a directory that exists."""
    run("mount", "-t", "tmpfs", "tmpfs", where)
    try:
        yield where
    finally:
        run("umount", where)


def newest_file(directory, pattern):
    """The newest file of this pattern."""
    found = max(pathlib.Path(directory).glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
    return found or sys.exit(f"no {pattern} in {directory}: run `firkin quickstart` first")


def processes():
    """Process ids and the programs that they run, as far as they can be read."""
    for path in pathlib.Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(path.name), os.readlink(path / "exe")


def machines(state_dir):
    """Process ids of the machines, or of the sandboxes of gVisor, that run with this state directory, oldest first."""
    run_dir = os.fsencode(str(pathlib.Path(state_dir) / "run")) + b"/"
    # QEMU has its instance directory in its environment, a sandbox of gVisor in its arguments.
    marks = {"environ": b"FIRKIN_INSTANCE=" + run_dir, "cmdline": b"--root=" + run_dir}
    found = []
    for path in pathlib.Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                texts = [(mark, (path / file).read_bytes().split(b"\0")) for file, mark in marks.items()]
                if any(text.startswith(mark) for mark, all in texts for text in all):
                    found.append(int(path.name))
    return sorted(found)


def field_kib(path, name):
    """The value of a line `name: 1234 kB` of a file in /proc."""
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def counts(server_pid, state_dir):
    """Everything that a leak would make more of."""
    namespaces = set()
    for path in pathlib.Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                namespaces.add(os.readlink(path / "ns/net"))
    named = pathlib.Path("/run/netns")
    return {
        "processes": sum(pathlib.Path(program).name.startswith(("qemu", "firkin", "runsc")) for _, program in processes()),
        "machines": len(machines(state_dir)),
        "network namespaces": len(namespaces),
        "named namespaces": sum(1 for _ in named.iterdir()) if named.is_dir() else 0,
        "interfaces": sum(1 for _ in pathlib.Path("/sys/class/net").iterdir()),
        "mounts": len(pathlib.Path(f"/proc/{server_pid}/mountinfo").read_text().splitlines()),
        "server descriptors": sum(1 for _ in pathlib.Path(f"/proc/{server_pid}/fd").iterdir()),
        "server threads": sum(1 for _ in pathlib.Path(f"/proc/{server_pid}/task").iterdir()),
        # What goes away meanwhile is not counted, and no error.
        "files": sum(len(files) for _, _, files in os.walk(state_dir)),
    }


def hardware():
    """What the figures were taken on."""
    models = [line.split(": ", 1)[1] for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else "unknown",
        "cpus": os.cpu_count(),
        "memory_mib": field_kib("/proc/meminfo", "MemTotal") // 1024,
        "kernel": os.uname().release,
        "load": os.getloadavg()[0],
    }
