"""One volume in many sandboxes at once, and in one that is paused, copied and thrown back while it works, and loses its server."""

import concurrent.futures
import hashlib
import uuid

import e2b
import httpx
import pytest
from own_server import own_server, sandboxes_of
from support import GUEST_PROGRAMS, SANDBOX_LIFETIME_S, WAIT_S, wait_for

AT = "/mnt/shared"
SHARERS, EMULATED_SHARERS = 20, 4
"""At once. Twenty emulated guests are not done in the time of a test."""
AT_A_TIME = 4
"""Creates under way."""
TIMES = 15


@pytest.mark.timeout(600)
def test_twenty_see_one_file_system(api):
    many = EMULATED_SHARERS if api.engine() == "emulated" else SHARERS
    volume, sandboxes = e2b.Volume.create(f"shared-{uuid.uuid4().hex[:12]}"), []

    def create(_) -> e2b.Sandbox:
        sandboxes.append(e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, volume_mounts={AT: volume.name}))
        sandboxes[-1].files.write("/home/user/sharer.py", (GUEST_PROGRAMS / "sharer.py").read_text())
        return sandboxes[-1]

    def work(numbered) -> None:
        number, sandbox = numbered
        sandbox.commands.run(f"python3 /home/user/sharer.py {AT} {number} {TIMES}", timeout=540)

    try:
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            assert len(list(pool.map(create, range(many)))) == many
        sandboxes[0].commands.run(f"echo 0 > {AT}/counter && chmod 666 {AT}/counter")
        with concurrent.futures.ThreadPoolExecutor(many) as pool:
            list(pool.map(work, enumerate(sandboxes)))
        expected = sorted(f"{who} {n}" for who in range(many) for n in range(TIMES))
        assert sandboxes[-1].commands.run(f"cat {AT}/counter").stdout == str(many * TIMES), "who has the turn sees what the one before wrote"
        assert sandboxes[-1].commands.run(f"ls -A {AT}").stdout.split() == ["counter", "current", "log"]
        log = sandboxes[0].commands.run(f"sort {AT}/log").stdout.splitlines()
        assert sorted(log) == expected, "no line was lost, and none is there twice"
        # What one renames the others have under its new name.
        sandboxes[0].commands.run(f"mv {AT}/log {AT}/moved")
        for sandbox in sandboxes[1:]:
            # What a kernel was told of a name it may believe for a second.
            moved = lambda: sandbox.commands.run(f"cat {AT}/moved 2>/dev/null | wc -l; test ! -e {AT}/log && echo gone || true").stdout.split()
            wait_for(lambda: moved() == [str(len(expected)), "gone"], "the new name of the log")
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
        e2b.Volume.destroy(volume.volume_id)


class Journals:
    """What sandboxes have written into a volume, read by another one that has it."""

    def __init__(self, reader: e2b.Sandbox) -> None:
        self.reader = reader

    def numbers(self, name: str) -> list[int]:
        """The records of one sandbox in their order. None may be torn or another's."""
        numbers = []
        for line in self.reader.commands.run(f"cat {AT}/journal-{name} 2>/dev/null || true").stdout.splitlines():
            who, number, digest = line.split(" ")
            assert (who, digest) == (name, hashlib.sha256(f"{who} {number}".encode()).hexdigest()), line
            numbers.append(int(number))
        return numbers

    def goes_on(self, name: str) -> int:
        """Returns once this sandbox has written more, and the last number."""
        before = len(self.numbers(name))
        return wait_for(lambda: (numbers := self.numbers(name))[before + 3 :] and numbers[-1], f"more records of {name}")

    def last_is_whole(self, name: str) -> None:
        lines = self.reader.commands.run(f"cat {AT}/last-{name}").stdout.splitlines()
        assert len(lines) == 100 and len(set(lines)) == 1, f"{len(lines)} lines, {len(set(lines))} of them different"


def errors(sandbox: e2b.Sandbox) -> set[str]:
    """What failed for its program."""
    return set(sandbox.commands.run("cat /tmp/errors 2>/dev/null || true").stdout.split())


def in_order(numbers: list[int], asked_again: int, thrown_back: int = 0) -> None:
    """Each record is there once and in order, but where the sandbox was thrown back, and where an append was asked again: by itself, or by a
    copy of it that was in the midst of that."""
    last, again, back = numbers[0] - 1, 0, 0
    for number, after in zip(numbers, [*numbers[1:], None], strict=True):
        if number <= last and (number == last or after == last + 1):
            again += 1
            continue
        back += number <= last
        assert number <= last + 1, f"records between {last} and {number} are lost: {numbers}"
        last = number
    assert again <= asked_again and back == thrown_back, f"{again} records are there twice, thrown back {back} times: {numbers}"


@pytest.mark.timeout(600)
def test_a_client_keeps_its_volume_through_all_that_happens_to_it(api):
    # Its kernel ends calls that a cut comes into.
    known = {"EIO", "EINTR"} if api.engine() == "gvisor" else set()
    with own_server() as server, sandboxes_of(server) as create:
        client = {name: value for name, value in server.client.items() if name != "sandbox_url"}
        volume = e2b.Volume.create("kept", **client)
        one, two = create(volume_mounts={AT: "kept"}), create(volume_mounts={AT: "kept"})
        journals, name = Journals(two), one.sandbox_id
        one.files.write("/home/user/keeper.py", (GUEST_PROGRAMS / "keeper.py").read_text())
        one.commands.run(f"exec python3 /home/user/keeper.py {AT}", background=True, timeout=0)
        journals.goes_on(name)

        one.pause()
        paused_at = journals.numbers(name)
        assert two.commands.run(f"echo beside >> {AT}/others; cat {AT}/others").stdout == "beside\n"
        one = e2b.Sandbox.connect(name, timeout=SANDBOX_LIFETIME_S, **server.client)
        journals.goes_on(name)
        assert journals.numbers(name)[: len(paused_at)] == paused_at

        (fork,) = one.fork()
        journals.goes_on(fork.sandbox_id)
        journals.goes_on(name)
        # It was in the midst of a record of its source's, which went on and took those files away.
        assert errors(fork) <= known | {"ESTALE"}
        fork.kill()
        in_order(journals.numbers(fork.sandbox_id), asked_again=1)
        in_order(journals.numbers(name), asked_again=3)

        snapshot = one.create_snapshot()
        journals.goes_on(name)
        rolled = httpx.post(
            f"{server.url}/sandboxes/{name}/rollback",
            json={"snapshotID": snapshot.snapshot_id},
            headers={"X-API-Key": server.client["api_key"]},
            timeout=WAIT_S,
        )
        assert rolled.is_success, rolled.text
        # What was written after the snapshot stays: the sandbox was thrown back, and not its volume.
        journals.goes_on(name)
        in_order(journals.numbers(name), asked_again=6, thrown_back=1)
        child = create(template=snapshot.snapshot_id, volume_mounts={AT: "kept"})
        journals.goes_on(child.sandbox_id)
        child.kill()
        in_order(journals.numbers(child.sandbox_id), asked_again=1)

        for _ in range(3):
            server.kill()
            server.start()
            journals.goes_on(name)
        in_order(journals.numbers(name), asked_again=9, thrown_back=1)
        assert errors(one) <= known | {"ESTALE"}
        journals.last_is_whole(name)
        reached = int(one.commands.run("cat /tmp/reached").stdout)
        assert reached <= max(journals.numbers(name)), "what a program was told is written is there"
        for sandbox in (one, two):
            sandbox.kill()
        e2b.Sandbox.delete_snapshot(snapshot.snapshot_id, **client)
        e2b.Volume.destroy(volume.volume_id, **client)
