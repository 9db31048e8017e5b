"""Several servers that are one address: each with a state directory and an engine of its own, on one PostgreSQL, and the SDK unmodified.

On gVisor alone, where a server is there in a second: what is passed from node to node is the same whatever runs sandboxes.
"""

import json

import e2b
import httpx
import pytest
from e2b import SandboxState
from e2b.exceptions import ServiceBusyException
from own_cluster import ONLY_GVISOR, at, cluster, listed  # noqa: F401 (`cluster` is a fixture)
from own_server import OwnServer
from support import SANDBOX_LIFETIME_S, WAIT_S, start_guest_program, wait_for

pytestmark = pytest.mark.lacking(emulated=ONLY_GVISOR, kvm=ONLY_GVISOR)

COUNTER_PORT = 7777
AWAY = "x-firkin-missing-nodes"


def test_any_node_serves_any_sandbox_and_what_is_not_a_node_is_refused(cluster):
    made = json.loads(cluster.firkin("cluster", "found", "--json", "--state-dir", cluster.database.dir / "nobody", *cluster.options))
    assert made["secret_is_new"] and cluster.secret.stat().st_mode & 0o777 == 0o600
    again = json.loads(cluster.firkin("cluster", "found", "--json", "--state-dir", cluster.database.dir / "nobody", *cluster.options))
    assert (again["cluster"], again["secret_is_new"]) == (made["cluster"], False)

    one, two = cluster.node("one"), cluster.node("two")
    one.start(*one.as_node)
    two.start(*two.as_node)
    assert "template base built" in one.log() and "template base built" not in two.log(), "what one node has built came to the other"
    assert "an artifact came from elsewhere" in two.log()
    assert not list(two.state.glob("roots/*")), "its own root image is as good as the one that stands below what came"
    assert {(node["state"], node["term"]) for node in cluster.nodes().values()} == {("ready", 1)}

    # A key of one node is good on the other, where it has heard of it.
    key = one.client["api_key"]
    wait_for(lambda: listed(two, key).is_success, "the second node to know a key that the first has made")
    here, there = one.client, two.client | {"api_key": key}
    sandboxes = [e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **client) for client in (here, there)]
    try:
        assert len({sandbox.sandbox_id for sandbox in sandboxes}) == 2
        for client in (here, there):
            seen = {item.sandbox_id for item in e2b.Sandbox.list(**client).next_items()}
            assert seen == {sandbox.sandbox_id for sandbox in sandboxes}
            for sandbox in sandboxes:
                through = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **client)
                assert through.commands.run("hostname").stdout.strip() == sandbox.sandbox_id
                through.files.write("/home/user/file", "x" * (1 << 20))
                assert through.files.read("/home/user/file") == "x" * (1 << 20)
        first = sandboxes[0]
        assert e2b.Sandbox.connect(first.sandbox_id, **there).pause()
        assert e2b.Sandbox.get_info(first.sandbox_id, **here).state == SandboxState.PAUSED
        again = e2b.Sandbox.connect(first.sandbox_id, timeout=SANDBOX_LIFETIME_S, **there)
        assert len(again.files.read("/home/user/file")) == 1 << 20

        # Whoever is no node of it does not begin, and says why.
        copy = cluster.node("copy")
        copy.state.mkdir(mode=0o700)
        (copy.state / "node-id").write_bytes((one.state / "node-id").read_bytes())
        assert "a copy of its" in cluster.refused(copy, *copy.as_node)
        stranger = cluster.node("stranger")
        secret = cluster.database.dir / "other.secret"
        secret.write_text("ab" * 32)
        secret.chmod(0o600)
        wrong = [str(secret) if word == str(cluster.secret) else word for word in stranger.as_node]
        assert "secret" in cluster.refused(stranger, *wrong)
        assert "cluster" in cluster.refused(stranger, "--catalog", cluster.database.url, *cluster.password)

        # What runs goes on without the database, also through the other node, and with it again.
        cluster.database.stop()
        for sandbox in (first, again):
            assert sandbox.commands.run("echo on").stdout == "on\n"
        cluster.database.start()
    finally:
        for sandbox in sandboxes:
            wait_for(lambda: gone(sandbox.sandbox_id, here), "a sandbox to be killed once the database is back")
    for server in (one, two):
        server.stop()


def gone(sandbox_id: str, client: dict) -> bool:
    try:
        e2b.Sandbox.kill(sandbox_id, **client)
        return True
    except e2b.SandboxException:
        return False


def test_a_node_that_is_away_is_named_and_comes_back_as_what_it_was(cluster):
    cluster.firkin("cluster", "found", "--state-dir", cluster.database.dir / "nobody", *cluster.options)
    one, two = cluster.node("one"), cluster.node("two")
    one.start(*one.as_node)
    key = one.client["api_key"]
    sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **one.client)
    sandbox.files.write("/home/user/file", "kept")
    two.start(*two.as_node)
    there = two.client | {"api_key": key}
    assert e2b.Sandbox.connect(sandbox.sandbox_id, **there).files.read("/home/user/file") == "kept"

    one.kill()
    answer = listed(two, key)
    assert answer.is_success and answer.headers[AWAY] == "one", answer.headers
    refused = httpx.get(f"{two.url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": key}, timeout=WAIT_S)
    assert refused.status_code == 503 and "`one`" in refused.json()["message"], refused.text

    one.start(*one.as_node)
    assert cluster.nodes()["one"]["term"] == 2

    def reached() -> bool:
        headers = {"X-API-Key": key}
        return httpx.get(f"{two.url}/sandboxes/{sandbox.sandbox_id}", headers=headers, timeout=WAIT_S).is_success

    wait_for(reached, "the second node to hear of the first's next term")
    assert e2b.Sandbox.connect(sandbox.sandbox_id, **there).files.read("/home/user/file") == "kept", "its machine outlived the server"
    wait_for(lambda: AWAY not in listed(two, key).headers, "all nodes to be listed")

    # An operator's word that it is off ends its server, which runs after all, and nothing of what runs there.
    assert "--it-is-off" in cluster.firkin("node", "forget", "one", *cluster.options, fails=True)
    cluster.firkin("node", "forget", "one", "--it-is-off", *cluster.options)
    assert cluster.nodes()["one"]["state"] == "forgotten"
    assert one.process.wait(WAIT_S) != 0 and "this node was taken" in one.log()
    one.process = None
    one.start(*one.as_node)
    assert (cluster.nodes()["one"]["state"], cluster.nodes()["one"]["term"]) == ("ready", 3)
    wait_for(reached, "the second node to hear of the first's third term")
    assert e2b.Sandbox.connect(sandbox.sandbox_id, **there).files.read("/home/user/file") == "kept"
    e2b.Sandbox.kill(sandbox.sandbox_id, **there)
    for server in (one, two):
        server.stop()


def counted(sandbox) -> list[str]:
    """One answer of guest/counter.py: pid, secret, how often it was asked, ticks."""
    return sandbox.commands.run(f"cat </dev/tcp/127.0.0.1/{COUNTER_PORT}").stdout.split()


def goes_on(sandbox, before: list[str], file: str) -> list[str]:
    """The same process goes on, with all that it had in memory and on the disk."""
    after = counted(sandbox)
    assert (after[0], after[1], int(after[2])) == (before[0], before[1], int(before[2]) + 1), (before, after)
    assert sandbox.files.read("/home/user/file") == file
    return after


def test_a_sandbox_goes_to_another_node_and_on_there_and_is_had_elsewhere_once_its_node_is_lost(cluster):
    cluster.firkin("cluster", "found", "--state-dir", cluster.database.dir / "nobody", *cluster.options)
    one, two = (cluster.node(name, "--durable", "cluster") for name in ("one", "two"))
    for server in (one, two):
        server.start(*server.as_node)
    key = one.client["api_key"]
    wait_for(lambda: listed(two, key).is_success, "the second node to know a key that the first has made")
    here, there = one.client, two.client | {"api_key": key}
    mover = ("--state-dir", one.state)

    def move(sandbox, *to: str, fails: bool = False):
        told = cluster.firkin(*mover, "--json", "sandbox", "move", sandbox.sandbox_id, *to, fails=fails)
        return told if fails else json.loads(told)

    sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **here)
    home = at(one, key, sandbox).headers["x-firkin-node"]
    other = "two" if home == "one" else "one"
    sandbox.files.write("/home/user/file", "before the move")
    start_guest_program(sandbox, "counter.py", COUNTER_PORT)
    before, until = counted(sandbox), e2b.Sandbox.get_info(sandbox.sandbox_id, **here).end_at

    assert "no node `three`" in move(sandbox, "three", fails=True)
    assert f"node `{home}` already" in move(sandbox, home, fails=True)
    before = goes_on(sandbox, before, "before the move")
    # Whoever has the database, it is asked of any node, and any node finds it afterwards.
    moved = move(sandbox, other)
    print(f"moved a running sandbox: blackout {moved['blackoutMs']} ms")
    assert (moved["node"], moved["ran"]) == (other, True)
    assert cluster.nodes()[other]["state"] == "ready"
    before = goes_on(sandbox, before, "before the move")
    for client in (here, there):
        info = e2b.Sandbox.get_info(sandbox.sandbox_id, **client)
        assert (info.state, info.end_at) == (SandboxState.RUNNING, until)
        assert [item.sandbox_id for item in e2b.Sandbox.list(**client).next_items()] == [sandbox.sandbox_id]
    assert at(one, key, sandbox).headers["x-firkin-node"] == other

    # A node that takes nothing is nobody's target, and makes none.
    cluster.firkin("node", "cordon", home, *cluster.options)

    def refused() -> bool:
        asked = httpx.post(
            f"{one.url}/admin/sandboxes/{sandbox.sandbox_id}/move", headers={"X-API-Key": key}, json={"node": home}, timeout=WAIT_S
        )
        if asked.is_success:
            move(sandbox, other)
        return asked.status_code == 409 and "cordoned" in asked.text

    wait_for(refused, "the others to hear that it takes nothing")
    before = goes_on(sandbox, before, "before the move")
    by_home = here if home == "one" else there

    def made() -> bool:
        new = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **by_home)
        where = at(one, key, new).headers["x-firkin-node"]
        e2b.Sandbox.kill(new.sandbox_id, **here)
        return where == other

    wait_for(made, "a create that is asked of the cordoned node to be made on the other")
    cluster.firkin("node", "uncordon", home, *cluster.options)

    # Drained, its paused and its running ones go, and what cannot go is named with the reason.
    paused = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **(there if other == "two" else here))
    if at(one, key, paused).headers["x-firkin-node"] == home:
        wait_for(lambda: home != "" and move(paused, other)["node"] == other, "it to be with the other one")
    paused.files.write("/home/user/file", "paused")
    assert paused.pause()
    told = json.loads(cluster.firkin(*mover, "--json", "node", "drain", other, *cluster.options))
    assert {(one_of["id"], one_of["result"], one_of["node"]) for one_of in told} == {
        (sandbox.sandbox_id, "moved", home),
        (paused.sandbox_id, "moved", home),
    }, told
    assert cluster.nodes()[other]["state"] == "draining"
    before = goes_on(sandbox, before, "before the move")
    cluster.firkin("node", "cordon", home, *cluster.options)
    wait_for(lambda: not cluster_takes(one, two, key), "all nodes to hear that none takes anything")
    stayed = cluster.firkin(*mover, "--json", "node", "drain", home, *cluster.options, fails=True)
    assert "2 stayed" in stayed, stayed
    before = goes_on(sandbox, before, "before the move")
    for name in (home, other):
        cluster.firkin("node", "uncordon", name, *cluster.options)

    # What is answered as paused is on the other node too, with its memory. This one has its files nowhere else, and its client is told so.
    copied, only = (e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **here) for _ in range(2))
    for made in (copied, only):
        if at(one, key, made).headers["x-firkin-node"] != home:
            move(made, home)
    copied = e2b.Sandbox.connect(copied.sandbox_id, timeout=SANDBOX_LIFETIME_S, **here)
    copied.files.write("/home/user/file", "copied")
    start_guest_program(copied, "counter.py", COUNTER_PORT)
    counts = counted(copied)
    assert copied.pause()
    cluster.firkin("node", "cordon", other, *cluster.options)

    def knows_it_is_cordoned() -> bool:
        asked = httpx.post(
            f"{one.url}/admin/sandboxes/{only.sandbox_id}/move", headers={"X-API-Key": key}, json={"node": other}, timeout=WAIT_S
        )
        if asked.is_success:
            move(only, home)
        return asked.status_code == 409 and "cordoned" in asked.text

    wait_for(knows_it_is_cordoned, "the node to hear that the other takes nothing")
    with pytest.raises(ServiceBusyException, match=f"is paused, and only on node `{home}`"):
        e2b.Sandbox.pause(only.sandbox_id, **here | {"retries": 0})
    assert e2b.Sandbox.get_info(only.sandbox_id, **here).state == SandboxState.PAUSED

    # The node that has all of them is lost. What is paused, and has its files elsewhere too, is had there; what ran is not.
    lost, left = (one, two) if home == "one" else (two, one)
    lost.kill()
    cluster.firkin("node", "forget", home, "--it-is-off", *cluster.options)
    client = left.client | {"api_key": key}

    def taken() -> bool:
        return at(left, key, paused).is_success

    wait_for(taken, "the other node to hear of it, and to have what was paused")
    assert e2b.Sandbox.get_info(paused.sandbox_id, **client).state == SandboxState.PAUSED
    again = e2b.Sandbox.connect(paused.sandbox_id, timeout=SANDBOX_LIFETIME_S, **client)
    assert again.files.read("/home/user/file") == "paused"
    goes_on(e2b.Sandbox.connect(copied.sandbox_id, timeout=SANDBOX_LIFETIME_S, **client), counts, "copied")
    assert at(left, key, sandbox).status_code == 503
    refused_by_name = at(left, key, only)
    assert (refused_by_name.status_code, refused_by_name.json()["error_code"]) == (503, "artifact_elsewhere"), refused_by_name.text
    assert f"`{home}`, which an operator has said is off" in refused_by_name.json()["message"]

    # It comes back, and does not go on with what is another's.
    lost.start(*lost.as_node)
    wait_for(lambda: at(lost, key, paused).headers["x-firkin-node"] == other, "the other node to let it in in its new term")
    wait_for(lambda: at(left, key, sandbox).is_success, "the other node to hear that it is back")
    goes_on(e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **client), before, "before the move")
    assert e2b.Sandbox.get_info(only.sandbox_id, **client).state == SandboxState.PAUSED
    for one_of in (sandbox, paused, copied, only):
        wait_for(lambda one_of=one_of: gone(one_of.sandbox_id, client), "a sandbox to be killed")
    for server in (one, two):
        server.stop()


def cluster_takes(one: OwnServer, two: OwnServer, key: str) -> bool:
    """Whether any node makes a new sandbox."""
    for server in (one, two):
        body = {"templateID": "base", "timeout": 60}
        made = httpx.post(f"{server.url}/sandboxes", headers={"X-API-Key": key}, json=body, timeout=WAIT_S)
        if made.is_success:
            e2b.Sandbox.kill(made.json()["sandboxID"], **server.client | {"api_key": key})
            return True
        assert made.status_code == 503, made.text
    return False
