"""Three hosts that are one address, on one machine: created through one, gone on with on another once the first is dead, the third drained.

What is real: the servers, the database, the engine, the SDK, and that the first host is killed with all that runs on it. `cargo xtask cluster demo`
runs this with all that it needs:

    unshare --net --mount python3 tests/cluster/demo.py FIRKIN DIRECTORY [--keep]
"""

import json
import os
import pathlib
import sys
import threading
import time

import e2b
from hosts import NODES, Cluster, Node, cluster, say, show, wait_for

LIFE_S = 3600

COUNT = "i=0; while sleep 0.1; do i=$((i+1)); echo $i > /tmp/count; done"
"""Runs in the sandbox: what it has counted is in the memory of this shell."""

def counted(sandbox: e2b.Sandbox) -> int:
    return int(wait_for(lambda: sandbox.commands.run("cat /tmp/count 2>/dev/null || true").stdout.strip(), "the guest to count"))


def nodes(hosts: Cluster) -> None:
    for node in json.loads(hosts.administer("node", "ls")):
        alive = f"lease for {node['lease_left_s']} s" if node["lease_left_s"] else f"away for {node['away_s']} s"
        show(f"{node['name']}  {node['address']}  {node['state']:<8}  term {node['term']}  {alive}")


def demonstrate(hosts: Cluster, keep: bool) -> None:
    say(f"PostgreSQL answers on {hosts.database.address}, a host of its own")
    for name in NODES:
        node = hosts.start(name, "--durable", "cluster")
        say(f"{name} answers on {node.url}")
    a, b, c = hosts.nodes.values()
    key = hosts.key()
    nodes(hosts)

    def home(sandbox: e2b.Sandbox) -> str:
        return hosts.asked(b, key, f"/sandboxes/{sandbox.sandbox_id}").headers["x-firkin-node"]

    def created(through: Node, on: Node) -> e2b.Sandbox:
        """A sandbox that begins where there is most room, and is moved if that is not where this story wants it."""
        sandbox = e2b.Sandbox.create(timeout=LIFE_S, **through.client(key))
        where = home(sandbox)
        say(f"created {sandbox.sandbox_id} through {through.name}: it is on {where}")
        if where != on.name:
            moved = json.loads(hosts.administer("--json", "sandbox", "move", sandbox.sandbox_id, on.name, through=through))
            say(f"moved it to {on.name} while it ran: it was away for {moved['blackoutMs']} ms")
        return sandbox

    sandbox = created(a, a)
    sandbox.files.write("/home/user/file", "written through node-a")
    sandbox.commands.run(COUNT, background=True)
    through_c = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=LIFE_S, **c.client(key))
    counted(sandbox)
    say(f"through node-c: `uname -n` says {through_c.commands.run('uname -n').stdout.strip()}, and a loop in it has counted to {counted(through_c)}")
    begins = time.monotonic()
    sandbox.pause()
    say(f"paused, and its files are on a second node ({time.monotonic() - begins:.1f} s)")

    say("killing node-a: its server, its machines, its network")
    a.die()
    refused = hosts.asked(b, key, f"/sandboxes/{sandbox.sandbox_id}")
    say(f"asked of node-b now: {refused.status_code} {refused.json().get('message', '')}")
    hosts.administer("node", "forget", "node-a", "--it-is-off")
    say("an operator says that node-a is off; nobody has to wait for the end of its lease")

    def had() -> e2b.Sandbox | None:
        try:
            return e2b.Sandbox.connect(sandbox.sandbox_id, timeout=LIFE_S, **b.client(key))
        except (e2b.SandboxException, e2b.ServiceBusyException) as error:
            say(f"not yet: {error}")
            return None

    begins = time.monotonic()
    again = wait_for(had, "it to be had without node-a")
    say(f"resumed through node-b ({time.monotonic() - begins:.1f} s): it is on {home(again)}")
    assert again.files.read("/home/user/file") == "written through node-a"
    before = counted(again)
    wait_for(lambda: counted(again) > before, "the loop in it to go on")
    say(f"its file is there, and the same loop goes on at {counted(again)}")

    others = [created(b, c), created(c, c)]
    if home(again) != "node-c":
        others.append(again)
    marks = {other.sandbox_id: f"kept by {other.sandbox_id}" for other in others}
    for other in others:
        other.files.write("/home/user/mark", marks[other.sandbox_id])
    others[1].pause()
    begins = time.monotonic()
    for gone in json.loads(hosts.administer("node", "drain", "node-c", through=b)):
        show(f"{gone['id']} {gone['result']} to {gone['node']}" + (f", away for {gone['blackoutMs']} ms" if gone.get("ran") else ""))
    say(f"node-c is drained ({time.monotonic() - begins:.1f} s)")
    for other in others:
        on = e2b.Sandbox.connect(other.sandbox_id, timeout=LIFE_S, **b.client(key))
        assert on.files.read("/home/user/mark") == marks[other.sandbox_id] and home(on) == "node-b"
    say("all that was there is on node-b, with what it had")
    a.come_back()
    say("node-a's host is back, with its disk: it serves in its next term, and has let go of what is another's by now")
    nodes(hosts)
    if keep:
        say("these go on until Ctrl-C:")
        for node in (b, c):
            show(f"export E2B_API_KEY={key} E2B_API_URL={node.url} E2B_SANDBOX_URL={node.url}   # {node.name}")
        show(f"nsenter --target {os.getpid()} --net --mount   # where they are reached")
        threading.Event().wait()
    for other in {again.sandbox_id, *marks}:
        e2b.Sandbox.kill(other, **b.client(key))


if __name__ == "__main__":
    with cluster(sys.argv[1], pathlib.Path(sys.argv[2])) as hosts:
        demonstrate(hosts, "--keep" in sys.argv)
        say("everything held")
