"""The table of gVisor: what a sandbox of it costs beside a container, beside the host itself, and beside an emulated machine.

Three servers of gVisor, which keep sandboxes warm, engines prepared and nothing, and one of emulated machines; all of one program.
"""

import contextlib
import pathlib
import subprocess
import time

from . import containers, host, measure, work
from .firkin import Server
from .host import say, wait_for

PARTS = ("first", "work", "pause", "burst", "density", "soak")
DEPTH = 2
INTERPRETER = "code-interpreter-v1"
# As the test command builds it: the rest takes minutes on a fresh host, and nothing here uses it.
WITHOUT = ("--without", "r,java,science")


def built(options, state_dir, engine):
    """The interpreter's template in a state directory that no server uses yet: it has numpy, pandas, a compiler and npm."""
    say(f"building {INTERPRETER} for {engine}")
    words = [options.firkin, "template", "build", INTERPRETER, *WITHOUT, "--engine", engine, "--state-dir", state_dir, "--cache-dir", options.cache_dir]
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def measured(options, scratch, stack):
    """Every row that was asked for."""
    only, rows = options.only, []

    def server(name, engine, *more):
        made = Server(options.firkin, scratch / name, options=["--engine", engine, "--cache-dir", options.cache_dir, *more])
        stack.callback(made.stop)
        return made

    states = [("cold", "gvisor")] + [("emulated", "emulated")] * bool({"work", "pause"} & set(only))
    for name, engine in states if "work" in only else ():
        built(options, scratch / name, engine)
    cold = server("cold", "gvisor", "--warm", "0", "--prepared", "0")
    if not cold.acceleration.startswith("gvisor"):
        raise SystemExit(f"the server runs {cold.acceleration}, not gvisor")
    measure.create_to_first_stdout(cold)
    if "first" in only:
        warm, prepared = (server(name, "gvisor", *more) for name, *more in POOLS)
        rows += first_outputs({"warm": warm, "prepared": prepared, "cold": cold}, options, scratch)
        for idle in (warm, prepared):
            idle.stop()
    emulated = server("emulated", "emulated", "--warm", "0", "--prepared", "0") if {"work", "pause"} & set(only) else None
    if "pause" in only:
        rows += pauses(cold, emulated, options.samples)
    if "work" in only:
        rows += works(cold, emulated, options, scratch)
    if emulated is not None:
        emulated.stop()
    if "burst" in only:
        rows += measure.bursts(cold, options.burst, options.samples)
    if "density" in only:
        rows += density(cold, options.clones)
    if "soak" in only:
        rows += measure.soak(cold, options.cycles)
    return cold.acceleration, rows


POOLS = [("warm", "--warm", str(DEPTH), "--prepared", "0"), ("prepared", "--warm", "0", "--prepared", str(DEPTH))]


def wait_until(server, state):
    """Waits until the pool is full and what filled it has come to rest."""
    of = lambda name: server.metric('firkin_pool_sessions{state="%s"}' % name) or 0
    wait_for(lambda: of(state) >= DEPTH and not of("making"), f"a pool of {DEPTH} {state}", seconds=120, pause=0.05)
    time.sleep(0.5)


def first_outputs(servers, options, scratch):
    """Creates to first stdout with each pool, against a container that is started and a process that is restored by hand, in turns."""
    image = host.newest_file(options.cache_dir, "rootfs-v*/*/rootfs.ext4")
    taken = {"warm": [], "prepared": [], "cold": [], "runc": [], "runsc": []}
    with host.mounted(image, scratch / "rootfs") as rootfs:
        runsc, runc = containers.GVisor(scratch, rootfs), containers.Runc(scratch, rootfs)
        for n in range(options.samples):
            say(f"first outputs: {n + 1} of {options.samples}")
            for name, state in (("warm", "ready"), ("prepared", "prepared"), ("cold", None)):
                for pool, full in (("warm", "ready"), ("prepared", "prepared")):
                    wait_until(servers[pool], full)
                taken[name].append(measure.create_to_first_stdout(servers[name]))
            taken["runsc"].append(runsc.restore_ms())
            taken["runc"].append(runc.echo_ms())
        containers.settled(except_for=[server.state_dir for server in servers.values()])
    by_hand = f"`runsc restore` of a Python process ({runsc.version})"
    return [
        measure.row("create to first stdout, warm pool", f"`runc run` of `echo` ({runc.version})", taken["warm"], taken["runc"], 1),
        measure.row("create to first stdout, pool empty, engine prepared", by_hand, taken["prepared"], taken["runsc"], 0.8),
        measure.row("create to first stdout, nothing prepared", by_hand, taken["cold"], taken["runsc"], 1.1),
    ]


def works(cold, emulated, options, scratch):
    """An agent's code in gVisor, on the host and in an emulated machine of the same size."""
    image = work.image_with(options.cache_dir, "usr/lib/python3*/**/numpy/__init__.py", "usr/local/lib/python3*/**/numpy/__init__.py")
    with host.mounted(image, scratch / "native") as tree, host.temporary(tree / "tmp"), contextlib.ExitStack() as sandboxes:
        made = [server.create(INTERPRETER) for server in (cold, emulated)]
        for sandbox in made:
            sandboxes.callback(sandbox.kill)
        taken = work.rounds(tree, *made, options.samples)
    rows = []
    for at, (kind, (host_bar, emulated_bar)) in enumerate(work.KINDS.items()):
        ours = taken["gvisor"][at]
        rows.append(measure.row(f"{kind} inside", "the same files on this host", ours, taken["host"][at], host_bar))
        note = f"bar: at least {emulated_bar} times faster"
        rows.append(measure.row(f"{kind} inside", "an emulated sandbox", ours, taken["emulated"][at], 1 / emulated_bar, note=note))
    return rows


def pauses(cold, emulated, samples):
    """Pauses of an idle `base` until they are answered, which they are when all of it is on the disk."""
    taken = {"gvisor": [], "emulated": []}
    for n in range(samples):
        say(f"pauses: {n + 1} of {samples}")
        for name, server in (("gvisor", cold), ("emulated", emulated)):
            sandbox = server.create()
            sandbox.first_output()
            begun = time.perf_counter()
            sandbox.pause()
            taken[name].append((time.perf_counter() - begun) * 1000)
            sandbox.kill()
    return [measure.row("pause of an idle `base`, durable", "an emulated sandbox", taken["gvisor"], taken["emulated"], 2)]


def components(state_dir):
    """KiB of proportional set size of all sandboxes of a state directory, by what it is for."""
    sandboxes = host.machines(state_dir)
    users = {pathlib.Path(f"/proc/{pid}").stat().st_uid for pid in sandboxes}
    parts = dict.fromkeys(("guest's memory", "gVisor's own memory", "program", "root image", "other", "page tables"), 0)
    for path in pathlib.Path("/proc").iterdir():
        # Stubs, which run the guest's programs, are of the sandbox's user too.
        with contextlib.suppress(OSError, IndexError):
            if path.name.isdigit() and path.stat().st_uid in users:
                add(parts, path)
    return parts


def add(parts, process):
    kind = "other"
    for line in (process / "smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            name = words[5] if len(words) > 5 else ""
            if "runsc-memory" in name or "memfd" in name:
                kind = "guest's memory"
            elif name.endswith("/runsc"):
                kind = "program"
            elif name.endswith(".erofs"):
                kind = "root image"
            elif name == "" or name.startswith(("[anon", "[heap", "[stack")):
                kind = "gVisor's own memory"
            else:
                kind = "other"
        elif words[0] == "Pss:":
            parts[kind] += int(words[1])
    parts["page tables"] += host.field_kib(process / "status", "VmPTE")


def density(cold, clones):
    """Memory of idle clones beyond the first, by its parts."""
    say(f"density: {clones} idle clones")
    sandboxes = []
    try:
        sandboxes.append(cold.create())
        alone = components(cold.state_dir)
        sandboxes += [cold.create() for _ in range(clones - 1)]
        together = components(cold.state_dir)
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
    split = {name: (together[name] - alone[name]) / (clones - 1) / 1024 for name in together}
    each = sum(split.values())
    return [{
        "what": "memory of each idle clone beyond the first, PSS", "against": "-", "unit": "MiB", "ours": each, "theirs": None,
        "ratio": None, "bar": "32 MiB", "met": each <= 32, "samples": [clones - 1, 0], "split": split,
        "note": ", ".join(f"{name} {value:.1f}" for name, value in sorted(split.items(), key=lambda item: -item[1])),
    }]  # fmt: skip
