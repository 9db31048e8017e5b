"""The server as a service: what systemd is told and hands over, with the privileges of the unit that is shipped.

On gVisor alone, where a server is there in a second: that other engines' machines outlive a server is in test_survival.py.
"""

import os
import shutil
import subprocess

import e2b
import pytest
from own_server import sandboxes_of
from support import SANDBOX_LIFETIME_S, WAIT_S
from systemd import UNITS, UnitServer, answer, confined, ended, setting

ONLY_GVISOR = "where the suite has gVisor, the unit is tried with it: a server is there in a second"

pytestmark = pytest.mark.lacking(emulated=ONLY_GVISOR, kvm=ONLY_GVISOR)

START_S = 120
"""As long as any server may take on a busy machine, the build of its base template included."""

UNIT = UNITS / "firkin.service"


@pytest.fixture
def server():
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program: these tests need a server of their own")
    server = UnitServer([*confined(UNIT), program, "up", "--warm", "0", "--on-exit", "leave"])
    server.env |= {"FIRKIN_STATE_DIR": str(server.state)}
    try:
        yield server
    finally:
        server.remove()


def test_who_comes_before_or_between_servers_waits_and_sandboxes_go_on(server):
    early = server.knock()
    server.start(watchdog_s=1.5)
    server.wait_told("READY=1", START_S)
    assert answer(early) == b"HTTP/1.1 200", "who came before the server was turned away"
    assert (server.state / "server.json").exists() and server.url in (server.state / "server.json").read_text()
    server.words.clear()
    server.wait_told("WATCHDOG=1")
    with sandboxes_of(server) as create:
        sandbox = create()
        sandbox.commands.run("echo $$ > /tmp/kept; sleep 600", background=True)
        machines = server.machines()
        ended(server)
        assert server.machines() == machines, "a sandbox went with its server"
        between = server.knock()
        server.start()
        server.wait_told("READY=1", START_S)
        assert answer(between) == b"HTTP/1.1 200", "who came between two servers was turned away"
        assert server.machines() == machines, "the next server is ready before it has taken over what ran"
        found = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **server.client)
        assert found.commands.run("kill -0 $(cat /tmp/kept) && echo alive").stdout == "alive\n"
    ended(server)


def test_a_new_version_says_whether_it_can_go_on(server):
    server.start()
    server.wait_told("READY=1", START_S)

    def check() -> subprocess.CompletedProcess:
        command = [os.environ["FIRKIN_BIN"], "upgrade-check", "--json"]
        return subprocess.run(command, env=os.environ | server.env, capture_output=True, text=True, timeout=WAIT_S)

    checked = check()
    assert checked.returncode == 0 and '"adoptable": true' in checked.stdout, checked.stdout + checked.stderr
    assert '"running": null' not in checked.stdout, "the server that runs says its version"
    manifest = next(server.state.glob("artifacts/*/manifest.json"))
    newer = server.state / "artifacts" / "of-a-newer-version"
    newer.mkdir()
    (newer / "manifest.json").write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    checked = check()
    assert checked.returncode == 1 and "artifacts: of-a-newer-version" in checked.stderr, checked.stdout + checked.stderr
    shutil.rmtree(newer)
    ended(server)


def test_units_are_understood(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze on this host")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/bin/firkin", os.environ["FIRKIN_BIN"])
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / unit.name) for unit in UNITS.iterdir()]
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=WAIT_S)
    said = [line for line in verified.stderr.splitlines() if "firkin" in line]
    assert verified.returncode == 0 and not said, verified.stderr
    assert setting(UNIT, "KillMode") == ["process"] and not setting(UNIT, "Delegate"), "machines outlive the server"
