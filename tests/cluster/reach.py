"""What it costs to come in through another node, and to go on on one, beside the same on the node itself: measured in turns in one run, with a real
engine and the SDK, on hosts that are namespaces of this machine. `cargo xtask cluster reach` runs this with all that it needs:

    unshare --net --mount python3 tests/cluster/reach.py FIRKIN DIRECTORY [SAMPLES]

All of it shares this machine's processors: what two real hosts do at the same time, these do one after the other.
"""

import pathlib
import statistics
import sys
import time

import e2b
import httpx
from hosts import WITHIN_S, Cluster, Node, cluster, say, wait_for

LIFE_S = 3600

MIB = 1 << 20


def took_ms(job) -> float:
    begins = time.perf_counter()
    job()
    return (time.perf_counter() - begins) * 1000


class Reach:
    """Two nodes, the second of which makes no sandboxes, and samples."""

    def __init__(self, hosts: Cluster, samples: int) -> None:
        self.hosts, self.samples = hosts, samples
        self.home, self.other = hosts.start("node-a"), hosts.start("node-b")
        self.key = hosts.key()
        self.rows: list[tuple] = []
        self.fill("node-b")

    def fill(self, cordoned: str) -> None:
        """Has creates be made on the node that is left."""
        self.hosts.administer("node", "cordon", cordoned)
        took = self.other if cordoned == "node-a" else self.home
        for _ in range(600):
            sandbox = e2b.Sandbox.create(timeout=LIFE_S, **self.other.client(self.key))
            where = self.where(sandbox)
            sandbox.kill()
            if where == took.name:
                return
        raise RuntimeError(f"creates do not come to {took.name}")

    def where(self, sandbox: e2b.Sandbox) -> str:
        return self.hosts.asked(self.home, self.key, f"/sandboxes/{sandbox.sandbox_id}").headers["x-firkin-node"]

    def create(self, through: Node) -> e2b.Sandbox:
        return e2b.Sandbox.create(timeout=LIFE_S, **through.client(self.key))

    def at_home(self) -> e2b.Sandbox:
        """One that is on the first node, though both may have it."""
        sandbox = self.create(self.home)
        if self.where(sandbox) != self.home.name:
            self.move(sandbox, self.home.name)
        return sandbox

    def at(self, sandbox: e2b.Sandbox, node: Node) -> e2b.Sandbox:
        return e2b.Sandbox.connect(sandbox.sandbox_id, timeout=LIFE_S, **node.client(self.key))

    def move(self, sandbox: e2b.Sandbox, to: str) -> dict:
        url, headers = f"{self.home.url}/admin/sandboxes/{sandbox.sandbox_id}/move", {"X-API-Key": self.key}
        answer = httpx.post(url, headers=headers, json={"node": to}, timeout=WITHIN_S)
        if not answer.is_success:
            raise RuntimeError(f"{sandbox.sandbox_id} was not moved: {answer.text}")
        return answer.json()

    def row(self, what: str, here: list[float], there: list[float], bar: str, verdict) -> None:
        one, two = statistics.median(here), statistics.median(there)
        self.rows.append((what, f"{one:.1f}", f"{two:.1f}", bar, verdict(one, two), len(here)))
        say(f"{what}: {one:.1f} ms, {two:.1f} ms ({verdict(one, two)}; the bar is {bar})")

    def in_turns(self, what: str, job, bar: str, verdict) -> None:
        """`job` of the node itself and of the other one, in turns."""
        here, there = [], []
        for _ in range(self.samples):
            here.append(job(self.home))
            there.append(job(self.other))
        self.row(what, here, there, bar, verdict)

    def edges(self) -> None:
        def created(node: Node, then=lambda sandbox: None) -> float:
            made = []

            def job() -> None:
                made.append(self.create(node))
                then(made[0])

            took = took_ms(job)
            made[0].kill()
            return took

        more = lambda one, two: f"{two - one:+.1f} ms"
        rate = lambda one, two: f"{one / two:.2f}x"
        self.in_turns("create", created, "+5 ms", more)
        self.in_turns("create and first stdout", lambda node: created(node, lambda made: made.commands.run("echo on")), "+5 ms", more)
        sandbox = self.create(self.home)
        sandbox.files.write("/home/user/file", b"\x00\x5a" * (MIB // 2))
        handles = {node.name: self.at(sandbox, node) for node in (self.home, self.other)}
        self.in_turns("command", lambda node: took_ms(lambda: handles[node.name].commands.run("true")), "0.8x", rate)
        read = lambda node: took_ms(lambda: handles[node.name].files.read("/home/user/file", format="bytes"))
        self.in_turns("1 MiB down", read, "0.8x", rate)
        sandbox.kill()

    def elsewhere(self) -> None:
        """20 MiB that are new in memory and on the disk, on a template that both have; then a sandbox that is idle."""
        local, remote, moved, stayed = [], [], [], []
        self.hosts.administer("node", "uncordon", "node-b")
        first = self.create(self.home)

        def goes() -> bool:
            try:
                return self.move(first, "node-b")["node"] == "node-b"
            except RuntimeError:
                return False  # not everybody has heard yet

        wait_for(goes, "node-b to take sandboxes again")
        first.kill()
        for _ in range(max(self.samples // 4, 3)):
            sandbox = self.at_home()
            sandbox.commands.run("head -c 20M /dev/urandom > /home/user/new")
            sandbox.pause()
            local.append(took_ms(lambda: self.at(sandbox, self.home)))
            sandbox.pause()

            def goes_on() -> None:
                self.move(sandbox, "node-b")
                self.at(sandbox, self.other)

            remote.append(took_ms(goes_on))
            sandbox.kill()
            idle = self.at_home()

            def stays() -> None:
                idle.pause()
                self.at(idle, self.home)

            stayed.append(took_ms(stays))
            moved.append(float(self.move(idle, "node-b")["blackoutMs"]))
            idle.kill()
        times = lambda one, two: f"{two / one:.1f}x"
        self.row("resume with 20 MiB that are new: here, and moved while paused and resumed there", local, remote, "1.5x", times)
        self.row("pause and resume; a running one that is moved is away for", stayed, moved, "2x", times)

    def table(self) -> None:
        print("\n| what | on the node, ms | through or on another, ms | bar | measured | samples |\n|---|---|---|---|---|---|")
        for what, one, two, bar, verdict, count in self.rows:
            print(f"| {what} | {one} | {two} | {bar} | {verdict} | {count} |")
        sys.stdout.flush()


if __name__ == "__main__":
    with cluster(sys.argv[1], pathlib.Path(sys.argv[2])) as hosts:
        reach = Reach(hosts, int(sys.argv[3]) if len(sys.argv) > 3 else 40)
        reach.edges()
        reach.elsewhere()
        reach.table()
