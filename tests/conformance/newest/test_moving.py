"""What is exported by one server and imported by another, with a state directory and a cache of its own, goes on there as it was left."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess

import e2b
import pytest
from e2b import SandboxState
from own_server import own_server
from support import SANDBOX_LIFETIME_S, start_guest_program

COUNTER_PORT = 7777
CACHE = pathlib.Path(os.environ.get("FIRKIN_CACHE_DIR", "/var/cache/firkin"))
COMMAND_S = 300


@pytest.fixture(scope="module")
def hosts():
    """Two servers that share nothing."""
    with own_server() as there:
        # Its files are never written in place, so names of the same are as good as copies, and cost nothing.
        cache = CACHE.with_name(f"{CACHE.name}-moving-{os.getpid()}")
        cache.mkdir(mode=0o700)
        # What comes and goes while other servers begin is none of it. What was found of the acceleration is replaced as a whole.
        kinds = [path for path in CACHE.glob("*-v*") if not path.name.startswith("own-kernel")]
        try:
            subprocess.run(["cp", "--archive", "--link", *kinds, cache], check=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(CACHE / "acceleration.json", cache)
            with own_server(FIRKIN_CACHE_DIR=str(cache)) as here:
                yield there, here
        finally:
            shutil.rmtree(cache)


def firkin(server, *words, fails: bool = False) -> str:
    """What a command of the server's program prints; where it fails, what it says."""
    command = [server.program, "--state-dir", server.state, "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def counted(sandbox) -> list[str]:
    """One answer of guest/counter.py: pid, secret, how often it was asked, ticks."""
    return sandbox.commands.run(f"cat </dev/tcp/127.0.0.1/{COUNTER_PORT}").stdout.split()


def test_a_paused_sandbox_goes_on_with_another_server(hosts, tmp_path):
    there, here = hosts
    sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **there.client)
    sandbox.files.write("/home/user/file", "written before it moved")
    start_guest_program(sandbox, "counter.py", COUNTER_PORT)
    before = counted(sandbox)
    archive = tmp_path / "sandbox.firkin"
    assert "pause it first" in firkin(there, "sandbox", "export", sandbox.sandbox_id, "--output", archive, fails=True)
    assert not archive.exists()
    sandbox.pause()
    told = json.loads(firkin(there, "sandbox", "export", sandbox.sandbox_id, "--output", archive))
    assert told["bytes"] == archive.stat().st_size

    damaged = tmp_path / "damaged.firkin"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert "member `" in firkin(here, "sandbox", "import", damaged, fails=True)
    damaged.write_bytes(content[: len(content) // 3])
    assert "damaged or cut off" in firkin(here, "sandbox", "import", damaged, fails=True)
    assert "not of a template" in firkin(here, "template", "import", archive, fails=True)
    assert not [item for item in e2b.Sandbox.list(**here.client).next_items() if item.sandbox_id == sandbox.sandbox_id]

    came = json.loads(firkin(here, "sandbox", "import", archive))
    assert (came["kind"], came["id"], came["was_here"]) == ("sandbox", sandbox.sandbox_id, False)
    assert json.loads(firkin(here, "sandbox", "import", archive))["was_here"]
    assert e2b.Sandbox.get_info(sandbox.sandbox_id, **here.client).state == SandboxState.PAUSED
    moved = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **here.client)
    after = counted(moved)
    assert (after[:2], int(after[2])) == (before[:2], int(before[2]) + 1), "the very process goes on"
    assert moved.files.read("/home/user/file") == "written before it moved"
    assert e2b.Sandbox.get_info(sandbox.sandbox_id, **there.client).state == SandboxState.PAUSED, "it stayed where it was"

    # The directory itself may move too. Each pause stands on what was written below the path from before.
    moved.pause()
    here.stop()
    here.state = here.state.rename(here.dir / "elsewhere")
    here.start()
    for turn in range(2):
        moved = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **here.client)
        again = counted(moved)
        assert (again[:2], int(again[2])) == (before[:2], int(after[2]) + 1 + turn)
        moved.files.write("/home/user/file", f"written in turn {turn}")
        moved.pause()
    assert e2b.Sandbox.connect(sandbox.sandbox_id, **here.client).files.read("/home/user/file") == "written in turn 1"
    for server in hosts:
        e2b.Sandbox.kill(sandbox.sandbox_id, **server.client)


@pytest.mark.lacking(emulated="where the suite has gVisor, these are moved there; a paused sandbox is moved with machines too")
def test_a_snapshot_and_a_template_come_under_a_name(hosts, tmp_path):
    there, here = hosts
    sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **there.client)
    sandbox.files.write("/home/user/file", "of a snapshot")
    snapshot = sandbox.create_snapshot()
    archive = tmp_path / "archive.firkin"
    firkin(there, "snapshot", "export", snapshot.snapshot_id, "--output", archive)
    firkin(here, "snapshot", "import", archive, "--name", "moved")
    with e2b.Sandbox.create("moved", timeout=SANDBOX_LIFETIME_S, **here.client) as other:
        assert other.files.read("/home/user/file") == "of a snapshot"

    firkin(there, "template", "export", "base", "--output", archive)
    assert "is here already" in firkin(here, "template", "import", archive, fails=True)
    firkin(here, "template", "import", archive, "--name", "another")
    with e2b.Sandbox.create("another", timeout=SANDBOX_LIFETIME_S, **here.client) as other:
        assert other.commands.run("echo here").stdout == "here\n"
    sandbox.kill()
