"""Restores are real: memory, processes, sockets and files go on from where they were, and identity does not.

A process inside the sandbox (guest/counter.py) keeps a secret and a count in its memory and answers each question with the
count raised by one. So every test can demand the exact next number, without a clock.
"""

import datetime
import time
from dataclasses import dataclass

import pytest
from e2b import NotFoundException, SandboxException, SandboxState, TimeoutException
from support import start_guest_program, wait_for, wait_for_clock

COUNTER_PORT = 7777
FORKS = 4
PAUSE_S = 4
CLOCK_SLACK_S = 1.5
"""How far the guest's clock may be from the host's, beyond the time that asking took. A guest that was told the time on a crowded
host may have had to wait for its turn to hear it; a clock that stood still during a pause is further off than this."""


@dataclass
class Answer:
    pid: int
    secret: str
    asked: int
    ticks: int


def ask(sandbox) -> Answer:
    pid, secret, asked, ticks = sandbox.commands.run(f"cat </dev/tcp/127.0.0.1/{COUNTER_PORT}").stdout.split()
    return Answer(int(pid), secret, int(asked), int(ticks))


def start_counter(sandbox) -> Answer:
    """Starts the counter and returns its first answer; how often starting it has asked is in that answer."""
    start_guest_program(sandbox, "counter.py", COUNTER_PORT)
    return ask(sandbox)


def assert_goes_on(sandbox, before: Answer, times: int) -> None:
    """The process of `before` lives on in `sandbox`: same memory, counting from the same number, and ticking by itself."""
    for step in range(1, times + 1):
        answer = ask(sandbox)
        assert (answer.pid, answer.secret, answer.asked) == (before.pid, before.secret, before.asked + step)
    wait_for(lambda: answer.ticks > before.ticks or ask(sandbox).ticks > before.ticks, "the counter to tick by itself")


def clock_error_s(sandbox) -> float:
    """How far the guest's real time lies outside the interval in which it was asked."""
    before = time.time()
    guest = float(sandbox.commands.run("date +%s.%N").stdout)
    after = time.time()
    return max(before - guest, guest - after, 0.0)


IDENTITY = """
hostname; cat /etc/hostname /etc/machine-id
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/uuid 2>/dev/null || head -c 16 /dev/random | od -An -tx1 | tr -d ' \\n'; echo
python3 -c 'import random, secrets, uuid; print(random.getrandbits(128), uuid.uuid4(), secrets.token_hex(16))'
"""
RANDOM_DRAWS = 5


def assert_own_identity(sandboxes) -> None:
    """Each has its own name; no two share a machine id or a draw of a fresh process from any source of randomness."""
    unique = []
    for sandbox in sandboxes:
        hostname, etc_hostname, machine_id, *draws = sandbox.commands.run(IDENTITY).stdout.split()
        assert hostname == etc_hostname == sandbox.sandbox_id
        assert len(machine_id) == 32
        assert len(draws) == RANDOM_DRAWS
        unique += [machine_id, *draws]
    assert len(set(unique)) == len(unique)


def test_creates_of_one_template_share_no_randomness(spawn):
    assert_own_identity([spawn(), spawn()])


def test_the_clock_is_right_after_create(sandbox):
    # The template's memory was frozen long ago.
    assert clock_error_s(sandbox) < CLOCK_SLACK_S


def test_pause_and_resume_keep_memory_and_files(driver, spawn):
    sandbox = spawn(envs={"KEPT": "yes"}, metadata={"kept": "too"})
    sandbox.files.write("/home/user/kept.txt", "kept")
    before = start_counter(sandbox)

    assert sandbox.pause() is True
    assert sandbox.get_info().state == SandboxState.PAUSED
    resumed = driver.connect(sandbox.sandbox_id)

    assert resumed.sandbox_id == sandbox.sandbox_id
    assert resumed.get_info().state == SandboxState.RUNNING
    assert resumed.get_info().metadata == {"kept": "too"}
    assert_goes_on(resumed, before, times=2)
    assert resumed.files.read("/home/user/kept.txt") == "kept"
    assert resumed.commands.run("echo $KEPT").stdout == "yes\n"
    assert before.pid in [int(pid) for pid in resumed.commands.run("pgrep -f counter.py").stdout.split()]


def test_many_pauses_of_one_sandbox(spawn):
    sandbox = spawn()
    before = start_counter(sandbox)
    for round in range(1, 4):
        assert sandbox.pause() is True
        sandbox.connect()
        answer = ask(sandbox)
        assert (answer.secret, answer.asked) == (before.secret, before.asked + round)


def test_a_command_started_before_a_pause_is_joined_after_it(spawn):
    sandbox = spawn()
    command = sandbox.commands.run("read line; echo got $line", background=True, stdin=True, timeout=0)
    sandbox.pause()
    with pytest.raises((TimeoutException, SandboxException)):
        command.wait()
    sandbox.connect()
    joined = sandbox.commands.connect(command.pid)
    sandbox.commands.send_stdin(command.pid, "word\n")
    assert joined.wait().stdout == "got word\n"


def test_a_paused_sandbox_is_paused_once_and_does_nothing(driver, spawn):
    sandbox = spawn()
    assert sandbox.pause() is True
    assert sandbox.pause() is False
    assert driver.pause(sandbox.sandbox_id) is False
    assert sandbox.is_running() is False
    with pytest.raises(TimeoutException):
        sandbox.commands.run("true")
    assert sandbox.kill() is True
    assert sandbox.kill() is False


def test_connect_gives_a_resumed_sandbox_its_timeout(spawn):
    sandbox = spawn()
    sandbox.pause()
    sandbox.connect(timeout=400)
    left = sandbox.get_info().end_at - datetime.datetime.now(datetime.timezone.utc)
    assert abs(left.total_seconds() - 400) < 10


def test_the_clock_is_right_after_a_pause(spawn):
    sandbox = spawn()
    paused_at = time.monotonic()
    sandbox.pause()
    wait_for_clock(paused_at + PAUSE_S)
    sandbox.connect()
    assert clock_error_s(sandbox) < CLOCK_SLACK_S


def test_a_deadline_may_pause_instead_of_kill(spawn):
    sandbox = spawn(lifecycle={"on_timeout": "pause"})
    assert sandbox.get_info().lifecycle["on_timeout"] == "pause"
    before = start_counter(sandbox)
    sandbox.set_timeout(1)
    wait_for(lambda: sandbox.get_info().state == SandboxState.PAUSED, "the sandbox to be paused at its deadline")
    sandbox.connect(timeout=600)
    assert_goes_on(sandbox, before, times=1)


def test_forks_go_on_each_for_itself(spawn):
    sandbox = spawn(metadata={"kind": "source"}, envs={"INHERITED": "yes"})
    sandbox.files.write("/home/user/shared.txt", "from the source")
    before = start_counter(sandbox)

    forks = sandbox.fork(count=FORKS, timeout=600)
    failed = [fork for fork in forks if isinstance(fork, Exception)]
    for fork in forks:
        if not isinstance(fork, Exception):
            spawn.adopt(fork)

    assert not failed
    assert len({fork.sandbox_id for fork in [sandbox, *forks]}) == FORKS + 1
    # Asked a different number of times, each counts for itself; the source goes on like its children.
    for times, member in enumerate([*forks, sandbox], start=1):
        assert_goes_on(member, before, times)
    assert_own_identity([sandbox, *forks])
    for fork in forks:
        inherited = fork.commands.run("echo $INHERITED $E2B_SANDBOX_ID; cat shared.txt").stdout
        assert inherited == f"yes {fork.sandbox_id}\nfrom the source"
        assert clock_error_s(fork) < CLOCK_SLACK_S


def test_programs_of_the_image_learn_of_each_life_before_users_do(spawn):
    sandbox = spawn()
    # It takes its time: a sandbox that does not wait for it is found out.
    hook = "#!/bin/sh\nsleep 0.5\necho $FIRKIN_EPOCH $E2B_SANDBOX_ID $(cat /run/firkin/epoch) >> /var/lives\n"
    sandbox.files.write("/etc/firkin/resumed.d/50-tell", hook, user="root")
    sandbox.files.write("/etc/firkin/resumed.d/10-fails", "#!/bin/sh\nexit 1\n", user="root")
    sandbox.commands.run("chmod +x /etc/firkin/resumed.d/*", user="root")
    sandbox.pause()
    sandbox.connect(timeout=600)
    (fork,) = sandbox.fork()
    spawn.adopt(fork)

    def lives(member) -> list[list[str]]:
        return [line.split() for line in member.files.read("/var/lives").splitlines()]

    for member, count in [(sandbox, 1), (fork, 2)]:
        own = lives(member)
        assert len(own) == count
        epoch, sandbox_id, in_file = own[-1]
        assert sandbox_id == member.sandbox_id
        assert epoch == in_file == member.files.read("/run/firkin/epoch").strip()


def test_forks_share_no_files_with_each_other(spawn):
    sandbox = spawn()
    sandbox.files.write("/home/user/file", "source")
    (fork,) = sandbox.fork()
    spawn.adopt(fork)
    fork.files.write("/home/user/file", "fork")
    assert sandbox.files.read("/home/user/file") == "source"
    assert sandbox.kill()
    assert fork.files.read("/home/user/file") == "fork"
    assert fork.commands.run("sync; echo alive").stdout == "alive\n"


def test_a_fork_can_be_paused_and_forked(driver, spawn):
    sandbox = spawn()
    before = start_counter(sandbox)
    (child,) = sandbox.fork()
    spawn.adopt(child)
    child.pause()
    child.connect()
    (grandchild,) = driver.fork(child.sandbox_id)
    spawn.adopt(grandchild)
    assert_goes_on(grandchild, before, times=1)
    assert_goes_on(child, before, times=2)


def test_a_snapshot_starts_sandboxes_even_without_its_source(driver, spawn):
    sandbox = spawn()
    sandbox.files.write("/home/user/then.txt", "then")
    before = start_counter(sandbox)

    snapshot = spawn.snapshot(sandbox)
    sandbox.files.write("/home/user/then.txt", "later")
    assert_goes_on(sandbox, before, times=1)
    listed = sandbox.list_snapshots().next_items()
    assert [info.snapshot_id for info in listed] == [snapshot.snapshot_id]

    first = spawn(snapshot.snapshot_id)
    sandbox.kill()
    second, third = spawn(snapshot.snapshot_id), spawn(snapshot.snapshot_id)
    for times, child in enumerate([first, second, third], start=1):
        assert_goes_on(child, before, times)
        assert child.files.read("/home/user/then.txt") == "then"
    assert_own_identity([first, second, third])

    for child in (first, second, third):
        child.kill()
    assert driver.delete_snapshot(snapshot.snapshot_id) is True
    assert driver.delete_snapshot(snapshot.snapshot_id) is False
    with pytest.raises(SandboxException) as refused:
        spawn(snapshot.snapshot_id)
    assert refused.value.status_code == 404


def test_a_named_snapshot_is_found_by_its_name(driver, spawn):
    sandbox = spawn()
    snapshot = spawn.snapshot(sandbox, name="conformance-named")
    assert any("conformance-named" in name for name in snapshot.names)
    found = driver.list_snapshots(name="conformance-named").next_items()
    assert [info.snapshot_id for info in found] == [snapshot.snapshot_id]
    assert spawn(snapshot.snapshot_id).commands.run("echo up").stdout == "up\n"


def test_what_a_pause_interrupts_is_not_lost(spawn):
    sandbox = spawn()
    sandbox.commands.run("(seq 1 200000 | sort -n | tail -1 >/home/user/sum) & disown", timeout=60)
    sandbox.pause()
    sandbox.connect()
    done = wait_for(
        lambda: sandbox.files.exists("/home/user/sum") and sandbox.files.read("/home/user/sum"),
        "the interrupted work to finish",
    )
    assert done == "200000\n"


def test_forking_what_is_gone_is_an_error(driver, spawn):
    sandbox = spawn()
    sandbox.kill()
    with pytest.raises(NotFoundException):
        driver.fork(sandbox.sandbox_id)
    with pytest.raises(NotFoundException):
        sandbox.create_snapshot()
