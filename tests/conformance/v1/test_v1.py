"""The older SDK, which speaks the first create and connect routes: the same sandboxes, reached by `/sandboxes`."""

import datetime
import uuid

import e2b
import pytest
from support import SANDBOX_LIFETIME_S, Brood, wait_for


@pytest.fixture(scope="module")
def driver():
    return e2b.Sandbox


def test_this_is_the_older_sdk():
    from importlib.metadata import version

    assert version("e2b").startswith("2.45.")


def test_create_and_run(sandbox):
    assert sandbox.is_running()
    assert sandbox.commands.run("whoami; echo $FROM_CREATE").stdout == "user\ncreate\n"


def test_create_and_run_asynchronously(api, loop):
    from support import Blocking

    brood = Brood(Blocking(e2b.AsyncSandbox, loop), api)
    try:
        sandbox = brood()
        assert sandbox.commands.run("echo hello").stdout == "hello\n"
        assert sandbox.kill() is True
    finally:
        brood.end()


def test_info_list_and_timeout(driver, spawn):
    metadata = {"tag": uuid.uuid4().hex}
    sandbox = spawn(metadata=metadata)
    assert sandbox.get_info().metadata == metadata
    listed = driver.list(query=e2b.SandboxQuery(metadata=metadata)).next_items()
    assert [info.sandbox_id for info in listed] == [sandbox.sandbox_id]
    sandbox.set_timeout(200)
    left = sandbox.get_info().end_at - datetime.datetime.now(datetime.timezone.utc)
    assert abs(left.total_seconds() - 200) < 5


def test_files(sandbox, folder):
    sandbox.files.write(f"{folder}/file", "content")
    assert sandbox.files.read(f"{folder}/file") == "content"
    assert [entry.name for entry in sandbox.files.list(folder)] == ["file"]
    sandbox.files.remove(f"{folder}/file")
    assert not sandbox.files.exists(f"{folder}/file")


def test_background_commands(sandbox):
    command = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    assert command.pid in [process.pid for process in sandbox.commands.list()]
    sandbox.commands.send_stdin(command.pid, "word\n")
    assert command.wait().stdout == "got word\n"


def test_pause_and_connect(driver, spawn):
    sandbox = spawn()
    sandbox.commands.run("echo kept >/dev/shm/in-memory")
    sandbox.pause()
    resumed = driver.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S)
    assert resumed.sandbox_id == sandbox.sandbox_id
    assert resumed.commands.run("cat /dev/shm/in-memory").stdout == "kept\n"


def test_fork(spawn):
    sandbox = spawn()
    sandbox.commands.run("echo kept >/dev/shm/in-memory")
    forks = sandbox.fork(count=2)
    for fork in forks:
        spawn.adopt(fork)
    for fork in forks:
        assert fork.commands.run("cat /dev/shm/in-memory").stdout == "kept\n"


def test_errors(driver, spawn):
    with pytest.raises(e2b.SandboxException, match="no-such-template"):
        spawn("no-such-template")
    with pytest.raises(e2b.AuthenticationException):
        driver.create(api_key="e2b_" + "0" * 40)
    sandbox = spawn()
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    with pytest.raises(e2b.TimeoutException):
        sandbox.commands.run("true")
    with pytest.raises(e2b.NotFoundException):
        driver.connect(sandbox.sandbox_id)


def test_routes_that_no_newer_sdk_calls(api):
    """The first routes' own defaults and the calls without an SDK method."""
    created = api.http.post("/sandboxes", json={"templateID": "base", "metadata": {"route": "v1"}})
    assert created.status_code == 201, created.text
    sandbox_id = created.json()["sandboxID"]
    try:
        detail = api.http.get(f"/sandboxes/{sandbox_id}").json()
        started, end = (datetime.datetime.fromisoformat(detail[key]) for key in ("startedAt", "endAt"))
        assert abs((end - started).total_seconds() - 15) < 2
        assert api.http.post(f"/sandboxes/{sandbox_id}/refreshes", json={"duration": 600}).status_code == 204
        assert sandbox_id in [sandbox["sandboxID"] for sandbox in api.http.get("/sandboxes").json()]
        assert api.http.get("/sandboxes", params={"metadata": "route=none"}).json() == []
        assert api.http.post(f"/sandboxes/{sandbox_id}/connect", json={"timeout": 30}).status_code == 200
        assert api.http.post(f"/sandboxes/{sandbox_id}/pause").status_code == 204
        assert sandbox_id not in [sandbox["sandboxID"] for sandbox in api.http.get("/sandboxes").json()]
        resumed = api.http.post(f"/sandboxes/{sandbox_id}/resume", json={"timeout": 60})
        assert resumed.status_code == 201, resumed.text
        state = api.http.get(f"/sandboxes/{sandbox_id}").json()["state"]
        assert state == "running"
    finally:
        api.kill(sandbox_id)


def test_a_short_lived_sandbox_ends_by_itself(driver, spawn):
    sandbox = spawn(timeout=2)
    wait_for(lambda: not sandbox.is_running(), "the sandbox to reach its deadline")
