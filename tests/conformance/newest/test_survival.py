"""A server may be killed at any time: machines go on, and the next server loses nothing of what was promised.

These tests have a server of their own, which they kill; the one that all other tests share must not notice.
"""

import contextlib
import json
import signal
import sqlite3
import threading
import time

import e2b
import httpx
import pytest
from e2b import NotFoundException, SandboxException, SandboxState
from outside import ALLOWED, OTHER, RESOLVER, outside  # noqa: F401 (a fixture)
from own_server import own_server, sandboxes_of
from support import GUEST_PROGRAMS, SANDBOX_LIFETIME_S, WAIT_S, Brood, start_guest_program, wait_for, wait_for_clock

COUNTER_PORT = 7777
AWAY_S = 30
"""How long there is no server for who tries again and again: an emulated guest tries twice."""
DEADLINE_S = 15
ROUNDS = 4
CUTS = 16
DEEPEST = 10
"""Layers of a disk that is being merged: the one too many, and one that was cut meanwhile."""

BROKEN = (SandboxException, httpx.HTTPError, OSError, AssertionError)
"""What a client sees of a server that is killed under it."""


@pytest.fixture(scope="module")
def server():
    with own_server() as server:
        yield server


@pytest.fixture
def create(server):
    """Creates sandboxes on the test's own server that end with the test."""
    with sandboxes_of(server) as create:
        yield create


@pytest.fixture
def brood(api):
    """Creates sandboxes on the server that all tests share."""
    brood = Brood(e2b.Sandbox, api)
    yield brood
    brood.end()


def connect(server, sandbox, **options):
    """The sandbox as a client finds it that knows nothing but its id."""
    return e2b.Sandbox.connect(sandbox.sandbox_id, **options, **server.client)


def listed(server) -> dict[str, SandboxState]:
    paginator = e2b.Sandbox.list(limit=100, **server.client)
    found = {}
    while paginator.has_next:
        found |= {sandbox.sandbox_id: sandbox.state for sandbox in paginator.next_items()}
    return found


def counted(sandbox) -> list[str]:
    """One answer of guest/counter.py: pid, secret, how often it was asked, ticks."""
    return sandbox.commands.run(f"cat </dev/tcp/127.0.0.1/{COUNTER_PORT}").stdout.split()


def assert_counts_on(sandbox, before: list[str]) -> list[str]:
    """The very process of `before` answers, and has been asked once more."""
    after = counted(sandbox)
    assert (after[:2], int(after[2])) == (before[:2], int(before[2]) + 1)
    return after


ON_GVISOR = "a machine's snapshot stands on its template: where the suite has gVisor, a template is taken away and built anew"


@pytest.mark.lacking(emulated=ON_GVISOR, kvm=ON_GVISOR)
def test_a_server_that_is_interrupted_while_it_begins_leaves_what_runs(server, create):
    first = create()
    sandbox = create(template=first.create_snapshot().snapshot_id)
    first.kill()
    start_guest_program(sandbox, "counter.py", COUNTER_PORT)
    before, machines = counted(sandbox), server.machines()
    # It has something to do after it has taken over what runs, and before it serves.
    deleted = httpx.delete(f"{server.url}/templates/base", headers={"X-API-Key": server.client["api_key"]}, timeout=WAIT_S)
    assert deleted.is_success, deleted.text
    server.kill()
    log = server.dir / "log"
    said = log.stat().st_size
    server.begin("--on-exit", "leave")
    wait_for(lambda: b"- template base" in log.read_bytes()[said:], "the server to begin a template")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(WAIT_S) == 130, server.log()
    server.process = None
    wait_for(lambda: server.machines() == machines, "its machine to go on alone, and that of the template to end")
    server.start()
    assert_counts_on(sandbox, before)


def test_names_are_closed_without_a_server_and_open_with_the_next(server, create, outside):  # noqa: F811
    rules = {"deny_out": ["0.0.0.0/0"], "allow_out": ["allowed.test", OTHER], "dns_servers": [RESOLVER]}
    sandbox = create(network=rules)
    sandbox.files.write("/home/user/reach.py", (GUEST_PROGRAMS / "reach.py").read_text())
    tries = """'["http", "allowed.test", "allowed.test"]' '["http", "ADDRESS", "x.test"]'""".replace("ADDRESS", OTHER)
    loop = f"while :; do python3 /home/user/reach.py {tries} >>/tmp/reached; done"
    sandbox.commands.run(loop, background=True, timeout=0)

    def tried(client) -> list[tuple]:
        lines = client.files.read("/tmp/reached").splitlines() if client.files.exists("/tmp/reached") else []
        return [tuple(isinstance(answer, dict) and answer["at"] for answer in json.loads(line)) for line in lines]

    wait_for(lambda: (ALLOWED, OTHER) in tried(sandbox), "what is reached while the server lives")
    server.kill()
    wait_for_clock(time.monotonic() + AWAY_S)
    server.start()
    found = connect(server, sandbox)
    before = tried(found)
    assert (False, OTHER) in before, "names were open without a server, or addresses closed"
    assert all(by_address == OTHER for _, by_address in before)
    wait_for(lambda: (ALLOWED, OTHER) in tried(found)[len(before) :], "names that are open again")


def test_a_sandbox_whose_rules_cannot_be_kept_any_more_is_cut_off_and_runs_on(server, create, outside):  # noqa: F811
    rules = {"deny_out": ["0.0.0.0/0"], "allow_out": ["allowed.test", OTHER], "dns_servers": [RESOLVER]}
    sandbox = create(network=rules)
    sandbox.files.write("/home/user/reach.py", (GUEST_PROGRAMS / "reach.py").read_text())

    def reached(client) -> bool:
        said = client.commands.run(f"""python3 /home/user/reach.py '["http", "{OTHER}", "x.test"]'""", timeout=120).stdout
        return isinstance(json.loads(said)[0], dict)

    assert reached(sandbox)
    server.kill()
    # As a server finds them that understands rules in another way.
    with contextlib.closing(sqlite3.connect(server.state / "firkin.db")) as database, database:
        changed = database.execute("UPDATE sandboxes SET body = replace(body, '\"allowed.test\"', '\"no..rule\"')").rowcount
        assert changed > 0 and "no..rule" in str(database.execute("SELECT body FROM sandboxes").fetchall())
    server.start()
    found = connect(server, sandbox)
    assert found.commands.run("echo here").stdout == "here\n"
    assert not reached(found), "a sandbox reaches what no rule of it that can be kept allows"
    assert "a sandbox is cut off" in server.log()
    # With rules that can be kept it has a way out again.
    found.update_network({"allow_out": [OTHER], "deny_out": ["0.0.0.0/0"]})
    assert reached(found)


def test_machines_and_commands_outlive_a_killed_server(server, create):
    sandbox = create(envs={"FROM_CREATE": "yes"})
    start_guest_program(sandbox, "counter.py", COUNTER_PORT)
    before = counted(sandbox)
    script = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/tmp/reached; sleep 0.2; done"
    command = sandbox.commands.run(script, background=True, timeout=0)
    machines = server.machines()
    server.kill()
    assert server.machines() == machines, "the machine went with its server"
    server.start()

    assert server.machines() == machines, "the machine is another one"
    assert listed(server) == {sandbox.sandbox_id: SandboxState.RUNNING}
    found = connect(server, sandbox)
    assert command.pid in [process.pid for process in found.commands.list()]
    reached = int(found.files.read("/tmp/reached"))
    output = []
    handle = found.commands.connect(command.pid, timeout=0)
    reader = threading.Thread(target=lambda: list(map(output.append, handle)))
    reader.start()
    wait_for(lambda: len(output) >= 3, "output of the command that went on")
    first = next(int(out or err or pty) for out, err, pty in output)
    assert first >= reached, "the command was started anew"
    found.commands.kill(command.pid)
    reader.join()

    # What the old client holds still works: its token, its connection settings.
    before = assert_counts_on(sandbox, before)
    assert sandbox.commands.run("echo $FROM_CREATE").stdout == "yes\n"

    # And the machine is whole: it can be paused and resumed, and a server can be killed again.
    found.pause()
    assert server.machines() == []
    server.restart()
    assert listed(server) == {sandbox.sandbox_id: SandboxState.PAUSED}
    found = connect(server, sandbox, timeout=SANDBOX_LIFETIME_S)
    before = assert_counts_on(found, before)
    server.restart()
    assert_counts_on(connect(server, sandbox), before)


def test_an_upgrade_leaves_machines_running(server, create):
    sandbox = create()
    start_guest_program(sandbox, "counter.py", COUNTER_PORT)
    before = counted(sandbox)
    machines = server.machines()
    server.kill()
    server.start("--on-exit", "leave")
    server.leave()
    assert server.machines() == machines, "the machine went with its server"
    server.start()
    before = assert_counts_on(connect(server, sandbox), before)
    sandbox.pause()
    assert_counts_on(connect(server, sandbox, timeout=SANDBOX_LIFETIME_S), before)


def test_deadlines_that_passed_without_a_server_are_honoured(server, create):
    killed = create()
    paused = create(lifecycle={"on_timeout": "pause"})
    lives = create()
    start_guest_program(paused, "counter.py", COUNTER_PORT)
    before = counted(paused)
    for sandbox in (killed, paused):
        sandbox.set_timeout(DEADLINE_S)
    server.kill()
    wait_for_clock(time.monotonic() + DEADLINE_S + 1)
    assert len(server.machines()) == 3, "no server, nobody to end them"
    server.start()
    expected = {paused.sandbox_id: SandboxState.PAUSED, lives.sandbox_id: SandboxState.RUNNING}
    wait_for(lambda: listed(server) == expected, f"deadlines that passed to be honoured: {listed(server)}")
    wait_for(lambda: len(server.machines()) == 1, "two machines to end")
    with pytest.raises(NotFoundException):
        connect(server, killed)
    assert_counts_on(connect(server, paused, timeout=SANDBOX_LIFETIME_S), before)


def test_a_server_killed_at_work_keeps_every_promise(server, create):
    """Pauses, resumes, snapshots and creates go on while the server is killed, each time at another moment."""
    template = create()
    rounds = []
    for number in range(ROUNDS):
        calm, busy = create(), create()
        for sandbox in (calm, busy):
            start_guest_program(sandbox, "counter.py", COUNTER_PORT)
        rounds.append((calm, counted(calm), busy, counted(busy)))
        promised, stop = {}, threading.Event()

        def work(busy=busy, promised=promised, stop=stop):
            """Remembers the last state that the server has promised for `busy`, and whether a change was under way."""
            steps = [
                (lambda: busy.create_snapshot(), SandboxState.RUNNING, False),
                (lambda: busy.pause(), SandboxState.PAUSED, True),
                (lambda: connect(server, busy, timeout=SANDBOX_LIFETIME_S), SandboxState.RUNNING, True),
            ]
            while not stop.is_set():
                for step, state, changes in steps:
                    promised["changing"] = changes
                    try:
                        step()
                    except BROKEN:
                        return
                    promised.update(state=state, changing=False)

        def make(stop=stop):
            while not stop.is_set():
                try:
                    e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **server.client).kill()
                except BROKEN:
                    return

        workers = [threading.Thread(target=work), threading.Thread(target=make)]
        for worker in workers:
            worker.start()
        wait_for(lambda: "state" in promised, "work to begin")
        wait_for_clock(time.monotonic() + 0.37 * number)
        server.kill()
        stop.set()
        for worker in workers:
            worker.join()
        server.start()

        states = listed(server)
        assert states[calm.sandbox_id] == SandboxState.RUNNING
        if not promised["changing"]:
            assert states[busy.sandbox_id] == promised["state"]
        running = [sandbox for sandbox, state in states.items() if state == SandboxState.RUNNING]
        wait_for(lambda: len(server.machines()) == len(running), "machines without a sandbox to end")
        for sandbox in states.keys() - {s.sandbox_id for r in rounds for s in (r[0], r[2])} - {template.sandbox_id}:
            e2b.Sandbox.kill(sandbox, **server.client)  # created, but its creator was never told

    for calm, calm_before, busy, busy_before in rounds:
        for sandbox, before in ((calm, calm_before), (busy, busy_before)):
            after = counted(connect(server, sandbox, timeout=SANDBOX_LIFETIME_S))
            assert after[:2] == before[:2], "not the process that ran when the server was killed"
            sandbox.kill()


def test_the_other_server_of_this_host_did_not_notice(server, brood):
    sandbox = brood()
    start_guest_program(sandbox, "counter.py", COUNTER_PORT)
    before = counted(sandbox)
    server.restart()
    server.restart()
    assert_counts_on(sandbox, before)


def deepest_layers(server) -> int:
    """Layers of the deepest disk that any snapshot of the server names."""

    def depths() -> list[int]:
        try:
            manifests = [json.loads(path.read_text()) for path in server.state.glob("artifacts/[!.]*/manifest.json")]
        except FileNotFoundError:
            return []  # one was collected meanwhile
        return [len(manifest["disk"]["layers"]) for manifest in manifests]

    return max(wait_for(depths, "manifests that stay while they are read"))


@pytest.mark.timeout(600)  # sixteen pauses and resumes of an emulated guest, and more
@pytest.mark.lacking(gvisor="its disk is in its state: there are no layers")
def test_a_disk_that_is_cut_again_and_again_stays_shallow_and_whole(server, create):
    sandbox = create()
    sandbox.commands.run("head -c 3000000 /dev/urandom > old; : > rounds; sync")
    old = sandbox.commands.run("sha256sum < old").stdout
    snapshot = None
    for round in range(CUTS):
        sandbox.commands.run(f"echo {round} >> rounds; head -c 200000 /dev/urandom > new-{round}; rm -f new-{round - 2}; sync")
        if round == 4:
            snapshot = sandbox.create_snapshot(**server.client)
        if round == CUTS - 4:
            # The record names what was merged, and the machine still has open what was there before.
            server.restart()
        sandbox.pause(**server.client)
        sandbox = connect(server, sandbox)
    assert deepest_layers(server) <= DEEPEST
    # What is in the guest's cache says nothing of its disk.
    sandbox.commands.run("sync; echo 3 > /proc/sys/vm/drop_caches", user="root")
    assert sandbox.commands.run("sha256sum < old").stdout == old
    assert sandbox.commands.run("cat rounds").stdout.split() == [str(round) for round in range(CUTS)]
    assert sandbox.commands.run("ls new-*").stdout.split() == sorted(f"new-{round}" for round in (CUTS - 2, CUTS - 1))
    assert sandbox.commands.run("cat /sys/fs/ext4/vda/errors_count").stdout == "0\n"

    # A sibling that shares layers which were merged since has what it had.
    follower = create(template=snapshot.snapshot_id)
    assert follower.commands.run("sha256sum < old").stdout == old
    assert follower.commands.run("cat rounds").stdout.split() == [str(round) for round in range(5)]
    e2b.Sandbox.kill(follower.sandbox_id, **server.client)
    e2b.Sandbox.delete_snapshot(snapshot.snapshot_id, **server.client)
