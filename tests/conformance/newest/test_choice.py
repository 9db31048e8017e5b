"""What `--engine auto` comes to on a host without KVM, and what becomes of what was there before it came to that."""

import os
import shutil

import e2b
import httpx
import pytest
from own_server import OwnServer
from support import SANDBOX_LIFETIME_S, WAIT_S

@pytest.fixture
def server():
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program")
    server = OwnServer(program)
    yield server
    server.remove()


@pytest.fixture
def runsc(monkeypatch):
    """Where it is asked for nothing, and gVisor is there."""
    if not (shutil.which("runsc") and shutil.which("mkfs.erofs")):
        pytest.skip("gVisor is not installed: no runsc, or no mkfs.erofs")
    monkeypatch.delenv("FIRKIN_ENGINE", raising=False)


def engines(server) -> list[str]:
    health = httpx.get(f"{server.url}/health", params={"details": ""}, headers={"X-API-Key": server.client["api_key"]}, timeout=WAIT_S)
    return health.json()["engines"]


@pytest.mark.lacking(gvisor="it is about the choice; where the suite has machines, it is made there")
def test_auto_takes_a_gvisor_that_has_all_and_strands_nothing(server, runsc, api):
    if api.engine() == "kvm":
        pytest.skip("`auto` is KVM here")
    server.start("--engine", "emulated", "--on-exit", "pause")
    old = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **server.client)
    old.files.write("/home/user/word", "kept")
    server.leave()

    server.start("--engine", "auto")
    assert engines(server) == ["gvisor", "emulated"]
    new = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **server.client)
    assert "gVisor" in new.commands.run("dmesg", user="root").stdout
    old = e2b.Sandbox.connect(old.sandbox_id, **server.client)
    assert old.files.read("/home/user/word") == "kept"
    assert "deb12" in old.commands.run("uname -r").stdout, "it is resumed by the engine that it ran on"
    for sandbox in (old, new):
        sandbox.kill()
    server.stop()
