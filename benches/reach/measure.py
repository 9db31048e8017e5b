"""The measurements, each a function that returns rows of the table."""

import concurrent.futures
import http.client
import pathlib
import statistics
import threading
import time

from . import host
from .host import say, wait_for

# Rewrites 20 MiB, then prints each 2 ms for as long as its reader stays.
DIRTY_TICKER = (
    "python3 -u -c 'import time\n"
    "b = bytearray(20 << 20)\n"
    "for i in range(0, len(b), 4096): b[i] = 1\n"
    "while True:\n    print(time.monotonic()); time.sleep(0.002)'"
)

# How long tickers print before and after what is measured.
QUIET_SECONDS = 1.0


def row(what, against, ours, theirs, bar, unit="ms", note=""):
    """One line of the table. `ours` and `theirs` are lists of samples; medians count."""
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {
        "what": what, "against": against, "unit": unit, "ours": mine, "theirs": other, "ratio": mine / other if other else None,
        "bar": bar, "met": mine <= bar * other, "samples": [len(ours), len(theirs)],
        "spread": [[min(ours), max(ours)], [min(theirs), max(theirs)]], "note": note,
    }  # fmt: skip


def create_to_first_stdout(server):
    begun = time.perf_counter()
    sandbox = server.create()
    try:
        return (sandbox.first_output() - begun) * 1000
    finally:
        sandbox.kill()


def create_alone(server):
    begun = time.perf_counter()
    sandbox = server.create()
    took = (time.perf_counter() - begun) * 1000
    sandbox.kill()
    return took


def wait_for_warm(server, depth):
    """Waits until the pool is full and what filled it has come to rest."""
    of = lambda state: server.metric('firkin_pool_sessions{state="%s"}' % state) or 0
    wait_for(lambda: of("ready") >= depth and not of("making"), "a full warm pool", seconds=120, pause=0.05)
    time.sleep(1.0)


def first_outputs(cold, warm, depth, gvisor, runc, samples):
    """(a) Creates to first stdout, against a restored and a cold container, in turns."""
    taken = {"cold": [], "warm": [], "gvisor": [], "runc": []}
    for n in range(samples):
        say(f"first outputs: {n + 1} of {samples}")
        if warm is not None:
            wait_for_warm(warm, depth)
            taken["warm"].append(create_to_first_stdout(warm))
            wait_for_warm(warm, depth)
        taken["cold"].append(create_to_first_stdout(cold))
        taken["gvisor"].append(gvisor.restore_ms())
        taken["runc"].append(runc.echo_ms())
    rows = []
    if taken["warm"]:
        rows.append(row("create to first stdout, warm pool", f"`runsc restore` ({gvisor.version})", taken["warm"], taken["gvisor"], 0.25))
        rows.append(row("create to first stdout, warm pool", f"`runc run` of `echo` ({runc.version})", taken["warm"], taken["runc"], 2))
    rows.append(row("create to first stdout, pool empty", f"`runsc restore` ({gvisor.version})", taken["cold"], taken["gvisor"], 1))
    return rows


def restores(cold, plain, samples):
    """(b) Restore to guest ready, against `-loadvm`, in turns. Ours is the whole create, as the client sees it."""
    ours, theirs, own = [], [], []
    servers_own = lambda: cold.metric('firkin_phase_seconds_sum{phase="warm_snapshot_restore"}')
    for n in range(samples):
        say(f"restores: {n + 1} of {samples}")
        before = servers_own()
        ours.append(create_alone(cold))
        if before is not None:
            own.append((servers_own() - before) * 1000)
        theirs.append(plain.load_ms())
        plain.kill()
    against = "QEMU `-loadvm` from qcow2"
    rows = [row("restore to guest ready, pool empty", against, ours, theirs, 0.5, note="ours: create over HTTP, identity included")]
    if own:
        rows.append(row("the same by the server's own clock", against, own, theirs, 0.5, note="`warm_snapshot_restore`"))
    return rows


class Ticker:
    """A guest process that prints all the time: the longest silence is how long the guest stood still."""

    def __init__(self, output):
        self.output, self.arrivals, self.ended = output, [], False
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        wait_for(lambda: self.arrivals or self.ended, "the guest's first tick")
        time.sleep(QUIET_SECONDS)

    def read(self):
        try:
            for _ in self.output:
                self.arrivals.append(time.perf_counter())
        except (OSError, http.client.HTTPException):
            # The guest was ended under it, as it always is.
            pass
        finally:
            self.ended = True

    def longest_ms(self, begun, ended):
        """The longest silence that overlaps this time."""
        wait_for(lambda: self.ended or (self.arrivals and self.arrivals[-1] > ended + 0.2), "ticks after the freeze")
        gaps = [(b - a) * 1000 for a, b in zip(self.arrivals, self.arrivals[1:]) if b >= begun and a <= ended]
        return max(gaps, default=0.0)

    def usual_ms(self):
        """The longest silence of the quiet time at the start: what the measurement itself cannot tell from a freeze."""
        end = self.arrivals[0] + QUIET_SECONDS
        return max(((b - a) * 1000 for a, b in zip(self.arrivals, self.arrivals[1:]) if b <= end), default=0.0)


def freezes(cold, plain, samples):
    """(c) Freeze of a 512 MiB guest with 20 MiB dirty, against QEMU's full migration to a file."""
    ours, theirs, own, noise = [], [], [], []
    hosts_own = lambda part: cold.metric(f'firkin_phase_seconds_{part}{{phase="snapshot_freeze"}}')
    for n in range(samples):
        say(f"freezes: {n + 1} of {samples}")
        sandbox = cold.create()
        try:
            ticker = Ticker(sandbox.start(DIRTY_TICKER))
            noise.append(ticker.usual_ms())
            before = hosts_own("sum")
            begun = time.perf_counter()
            snapshot = sandbox.snapshot()
            ours.append(ticker.longest_ms(begun, time.perf_counter()))
            if before is not None:
                own.append((hosts_own("sum") - before) * 1000)
        finally:
            sandbox.kill()
        cold.call("DELETE", f"/templates/{snapshot.split(':')[0]}")
        plain.load_ms()
        try:
            ticker = Ticker(plain.command(DIRTY_TICKER))
            begun = time.perf_counter()
            stood = plain.migrate_ms()
            theirs.append((ticker.longest_ms(begun, time.perf_counter()), stood))
        finally:
            plain.kill()
    seen = row(
        "freeze of a cut, 512 MiB guest, 20 MiB dirty, seen by the longest silence of a guest process",
        "QEMU's full migration to a file", ours, [gap for gap, _ in theirs], 0.05,
        note=f"silence without any cut: median {statistics.median(noise):.1f} ms",
    )  # fmt: skip
    rows = [seen]
    if own:
        rows.append(row("the same by the hosts' own clocks", "the same, stop to continue", own, [stood for _, stood in theirs], 0.05))
    return rows


def bursts(cold, count, rounds):
    """(d) Creates at once against the same number in sequence."""
    at_once, in_turn, failed = [], [], 0
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        for n in range(rounds):
            say(f"bursts: {n + 1} of {rounds}")
            for walls, many in ((in_turn, False), (at_once, True)):
                sandboxes = []

                def create(_, sandboxes=sandboxes):
                    sandbox = cold.create()
                    sandboxes.append(sandbox)
                    sandbox.first_output()

                begun = time.perf_counter()
                attempts = [threads.submit(create, i) for i in range(count)] if many else []
                if not many:
                    for i in range(count):
                        create(i)
                failed += sum(attempt.exception() is not None for attempt in attempts)
                walls.append((time.perf_counter() - begun) * 1000)
                list(threads.map(lambda sandbox: sandbox.kill(), sandboxes))
    result = row(f"{count} creates at once to first stdout, wall clock", f"{count} in sequence", at_once, in_turn, 0.7, note=f"{failed} failed")
    result["met"] = result["met"] and failed == 0
    return [result]


def components(pid, state_dir):
    """KiB of one machine's proportional set size, by what it is for."""
    parts = {"guest pages": 0, "QEMU heap": 0, "QEMU anonymous": 0, "translated code": 0, "program and libraries": 0, "other": 0}
    kind = "other"
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            permissions, path = words[1], words[5] if len(words) > 5 else ""
            if path.startswith(str(state_dir)):
                kind = "guest pages"
            elif path == "[heap]":
                kind = "QEMU heap"
            elif path.startswith("/usr") or path.startswith("/lib"):
                kind = "program and libraries"
            elif path == "" or path.startswith(("[anon", "[stack")):
                kind = "translated code" if "x" in permissions else "QEMU anonymous"
            else:
                kind = "translated code" if "x" in permissions else "other"
        elif words[0] == "Pss:":
            parts[kind] += int(words[1])
    parts["page tables"] = host.field_kib(f"/proc/{pid}/status", "VmPTE")
    return parts


def density(cold, clones):
    """(e) PSS of idle clones beyond the first, by component, and (f) what a create reads of its artifact."""
    say(f"density: {clones} idle clones")
    sandboxes, rows = [], []

    def total():
        parts = [components(pid, cold.state_dir) for pid in host.machines(cold.state_dir)]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    try:
        sandboxes.append(cold.create())
        alone = total()
        read = reads(cold)
        sandboxes += [cold.create() for _ in range(clones - 1)]
        together = total()
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
    split = {name: (together[name] - alone[name]) / (clones - 1) / 1024 for name in together}
    each = sum(split.values())
    rows.append({
        "what": "memory of each idle clone beyond the first, PSS", "against": "-", "unit": "MiB", "ours": each, "theirs": None,
        "ratio": None, "bar": "32 MiB", "met": each <= 32, "samples": [clones - 1, 0], "split": split,
        "note": ", ".join(f"{name} {value:.1f}" for name, value in sorted(split.items(), key=lambda item: -item[1])),
    })  # fmt: skip
    return rows + read


def reads(cold):
    """(f) Bytes of the artifact that a create with a warm page cache read: by mapping, and by calls to read."""
    pid = host.machines(cold.state_dir)[-1]
    mapped, size, inside = 0, 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = len(words) > 5 and words[5].startswith(str(cold.state_dir)) and "artifacts" in words[5]
            size = max(size, pathlib.Path(words[5]).stat().st_size if inside else 0)
        elif inside and words[0] == "Rss:":
            mapped += int(words[1]) << 10
    called = lambda process: int(pathlib.Path(f"/proc/{process}/io").read_text().split()[1])
    before = called(cold.process.pid)
    extra = cold.create()
    by_server = called(cold.process.pid) - before
    by_machine = called(host.machines(cold.state_dir)[-1])
    extra.kill()
    share = mapped / size if size else 1
    return [{
        "what": "bytes of the memory file that a create maps in", "against": "size of the file", "unit": "MiB", "ours": mapped / 2**20,
        "theirs": size / 2**20, "ratio": share, "bar": 0.05, "met": share < 0.05, "samples": [1, 1],
        "note": f"besides by read(): server {by_server / 2**20:.1f} MiB, QEMU with its libraries and device state {by_machine / 2**20:.1f} MiB",
    }]  # fmt: skip


def soak(cold, cycles, warm_up=100):
    """(g) Create, pause, kill, again and again: nothing may become more. The warm-up is as long as the allocator takes to hold what it will."""

    def cycle(n):
        sandbox = cold.create()
        if n % 50 == 0:
            sandbox.first_output()
        sandbox.pause()
        sandbox.kill()

    for n in range(warm_up):
        cycle(n)
    time.sleep(3)
    before, memory = host.counts(cold.process.pid, cold.state_dir), cold.resident_kib()
    begun = time.monotonic()
    for n in range(cycles):
        if n % 100 == 0:
            say(f"soak: {n} of {cycles}, server memory {cold.resident_kib() / 1024:.1f} MiB")
        cycle(n)
    took = time.monotonic() - begun
    settled = lambda: host.counts(cold.process.pid, cold.state_dir) == before
    deadline = time.monotonic() + 30
    while not settled() and time.monotonic() < deadline:
        time.sleep(0.5)
    after, memory_after = host.counts(cold.process.pid, cold.state_dir), cold.resident_kib()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    # Threads of a pool come and go; of everything else, more is a leak.
    leaked = {name: pair for name, pair in changed.items() if pair[1] > pair[0] and name != "server threads"}
    grown = memory_after / memory
    return [{
        "what": f"{cycles} cycles of create, pause, kill: server memory", "against": "start of the run", "unit": "MiB", "ours": memory_after / 1024,
        "theirs": memory / 1024, "ratio": grown, "bar": 1.1, "met": grown <= 1.1 and not leaked, "samples": [cycles, 1], "before": before,
        "after": after, "note": f"{took / cycles * 1000:.0f} ms a cycle; counts that changed: {changed or 'none'}",
    }]  # fmt: skip
