"""A sandbox from create to kill: what it reports of itself, how it is found again, when it ends."""

import datetime
import re
import uuid

import pytest
from support import SANDBOX_LIFETIME_S, wait_for
from e2b import NotFoundException, SandboxException, SandboxNotFoundException, SandboxQuery, SandboxState, TimeoutException


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def ids(paginator) -> list[str]:
    """Every id of a listing, page by page; no page may be larger than asked for."""
    found = []
    while paginator.has_next:
        page = paginator.next_items()
        assert paginator.limit is None or len(page) <= paginator.limit
        found += [info.sandbox_id for info in page]
    return found


def test_create_gives_a_running_sandbox(driver, sandbox):
    assert re.fullmatch(r"[a-z0-9]+", sandbox.sandbox_id)
    assert sandbox.is_running()
    assert sandbox.commands.run("echo hello").stdout == "hello\n"


def test_info_describes_the_sandbox(driver, spawn):
    before = now()
    sandbox = spawn("base", metadata={"purpose": "info"}, timeout=SANDBOX_LIFETIME_S)
    after = now()

    info = sandbox.get_info()

    assert info.sandbox_id == sandbox.sandbox_id
    assert info.state == SandboxState.RUNNING
    assert info.metadata == {"purpose": "info"}
    assert info.template_id
    assert info.cpu_count >= 1
    assert info.memory_mb >= 128
    assert info.envd_version
    slack = datetime.timedelta(seconds=1)
    assert before - slack <= info.started_at <= after + slack
    lifetime = datetime.timedelta(seconds=SANDBOX_LIFETIME_S)
    assert before + lifetime - slack <= info.end_at <= after + lifetime + slack
    assert driver.get_info(sandbox.sandbox_id).started_at == info.started_at


def test_reported_size_is_the_guests_size(sandbox):
    info = sandbox.get_info()
    assert int(sandbox.commands.run("nproc").stdout) == info.cpu_count
    total_kib = int(sandbox.commands.run("grep MemTotal /proc/meminfo | tr -dc 0-9").stdout)
    assert 0.8 * info.memory_mb <= total_kib / 1024 <= info.memory_mb


def test_default_timeout_is_five_minutes(driver, spawn):
    info = spawn(timeout=None).get_info()
    assert abs((info.end_at - info.started_at).total_seconds() - 300) < 5


def test_listing_filters_by_metadata(driver, spawn):
    tag = uuid.uuid4().hex
    awkward = {"tag": tag, "a b&c=d": "e=f&g h/ä%20"}
    wanted = spawn(metadata=awkward)
    spawn(metadata={"tag": tag})

    assert ids(driver.list(query=SandboxQuery(metadata=awkward))) == [wanted.sandbox_id]
    assert len(ids(driver.list(query=SandboxQuery(metadata={"tag": tag})))) == 2
    assert ids(driver.list(query=SandboxQuery(metadata={"tag": uuid.uuid4().hex}))) == []


def test_listing_filters_by_state_and_template(driver, spawn):
    tag = {"tag": uuid.uuid4().hex}
    running, paused = spawn(metadata=tag), spawn(metadata=tag)
    paused.pause()

    def listed(**query):
        return ids(driver.list(query=SandboxQuery(metadata=tag, **query)))

    assert listed(state=[SandboxState.RUNNING]) == [running.sandbox_id]
    assert listed(state=[SandboxState.PAUSED]) == [paused.sandbox_id]
    assert set(listed()) == {running.sandbox_id, paused.sandbox_id}
    assert set(listed(template="base")) == {running.sandbox_id, paused.sandbox_id}
    assert listed(template="no-such-template") == []


def test_listing_pages_in_order_of_start(driver, spawn):
    tag = {"tag": uuid.uuid4().hex}
    made = [spawn(metadata=tag).sandbox_id for _ in range(3)]
    query = SandboxQuery(metadata=tag)

    assert ids(driver.list(query=query, limit=2)) == made[::-1]
    assert ids(driver.list(query=query, limit=1, order="asc")) == made
    assert ids(driver.list(query=query, limit=3)) == made[::-1]


def test_set_timeout_counts_from_now(driver, spawn):
    sandbox = spawn(timeout=60)
    sandbox.set_timeout(500)
    assert abs((sandbox.get_info().end_at - now()).total_seconds() - 500) < 5
    driver.set_timeout(sandbox.sandbox_id, 120)
    assert abs((sandbox.get_info().end_at - now()).total_seconds() - 120) < 5


def test_connect_to_a_running_sandbox_never_shortens_its_life(driver, spawn):
    sandbox = spawn(timeout=500)
    same = driver.connect(sandbox.sandbox_id, timeout=10)
    assert same.sandbox_id == sandbox.sandbox_id
    assert same.commands.run("echo again").stdout == "again\n"
    assert (sandbox.get_info().end_at - now()).total_seconds() > 400
    driver.connect(sandbox.sandbox_id, timeout=800)
    assert (sandbox.get_info().end_at - now()).total_seconds() > 700


def test_a_sandbox_ends_at_its_deadline(driver, spawn):
    sandbox = spawn()
    sandbox.set_timeout(1)
    wait_for(lambda: not sandbox.is_running(), "the sandbox to reach its deadline")
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


def test_kill_ends_a_sandbox_once(driver, spawn):
    sandbox = spawn()
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert driver.kill(sandbox.sandbox_id) is False
    assert sandbox.is_running() is False
    assert sandbox.sandbox_id not in ids(driver.list())
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


def test_a_killed_sandbox_answers_with_the_sdks_own_errors(driver, spawn):
    sandbox = spawn()
    sandbox.kill()
    with pytest.raises(TimeoutException, match="was not found"):
        sandbox.commands.run("true")
    with pytest.raises(TimeoutException, match="was not found"):
        sandbox.files.read("/etc/hostname")
    with pytest.raises(TimeoutException, match="was not found"):
        sandbox.files.list("/")
    with pytest.raises(NotFoundException):
        sandbox.set_timeout(10)
    with pytest.raises(NotFoundException):
        sandbox.pause()
    with pytest.raises(NotFoundException):
        sandbox.connect()
    with pytest.raises(NotFoundException):
        sandbox.fork()
    with pytest.raises(NotFoundException):
        sandbox.create_snapshot()


def test_kill_cuts_a_running_command(driver, spawn):
    sandbox = spawn()
    command = sandbox.commands.run("sleep 1000", background=True, timeout=0)
    sandbox.kill()
    with pytest.raises(TimeoutException):
        command.wait()


def test_a_repeated_create_with_one_key_makes_one_sandbox(driver, spawn):
    key = uuid.uuid4().hex
    first = spawn(idempotency_key=key, metadata={"n": "1"})
    again = driver.create(timeout=SANDBOX_LIFETIME_S, idempotency_key=key, metadata={"n": "1"})
    assert again.sandbox_id == first.sandbox_id
    with pytest.raises(SandboxException) as refused:
        spawn(idempotency_key=key, metadata={"n": "2"})
    assert refused.value.status_code == 422


def test_metrics_are_samples_of_the_guest(sandbox):
    sample = wait_for(sandbox.get_metrics, "a sample")[-1]
    assert sample.cpu_count == sandbox.get_info().cpu_count
    assert 0 < sample.mem_used < sample.mem_total


@pytest.mark.lacking(gvisor="Debian's build of runsc tells no size of a disk, nor what is used of it")
def test_metrics_tell_of_the_disk(sandbox):
    sample = wait_for(sandbox.get_metrics, "a sample")[-1]
    assert 0 < sample.disk_used < sample.disk_total
