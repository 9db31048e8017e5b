"""What is on record in PostgreSQL: a server moves there with a paused sandbox, goes on while the database is away, and is backed up.

On gVisor alone, where a server is there in a second: nothing of it is an engine's.
"""

import os
import subprocess

import e2b
import httpx
import pytest
from own_server import OwnServer, sandboxes_of
from postgres import Postgres
from support import SANDBOX_LIFETIME_S, WAIT_S, wait_for

ONLY_GVISOR = "where the suite has gVisor, a catalogue is tried with it: a server is there in a second"

pytestmark = pytest.mark.lacking(emulated=ONLY_GVISOR, kvm=ONLY_GVISOR)


@pytest.fixture
def postgres():
    postgres = Postgres()
    try:
        yield postgres
    finally:
        postgres.remove()


@pytest.fixture
def servers():
    """Makes servers that are gone with the test."""
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program: these tests need a server of their own")
    made = []

    def make() -> OwnServer:
        made.append(OwnServer(program))
        return made[-1]

    yield make
    for server in made:
        server.remove()


def firkin(server: OwnServer, *words) -> subprocess.CompletedProcess:
    line = [server.program, *map(str, words), "--state-dir", str(server.state)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S)


def details(server: OwnServer) -> dict:
    headers = {"X-API-Key": server.client["api_key"]}
    return httpx.get(f"{server.url}/health?details", headers=headers, timeout=WAIT_S).json()["catalog"]


def create(server: OwnServer) -> httpx.Response:
    headers = {"X-API-Key": server.client["api_key"]}
    return httpx.post(f"{server.url}/sandboxes", json={"templateID": "base", "timeout": 60}, headers=headers, timeout=WAIT_S)


def test_a_server_moves_into_postgresql_goes_on_while_that_is_away_and_is_backed_up(servers, postgres, tmp_path):
    server, options = servers(), ("--catalog", postgres.url, "--catalog-password-file", str(postgres.dir / "password"))
    server.start()
    with sandboxes_of(server) as spawn:
        sandbox = spawn()
        sandbox.files.write("kept", "from before")
        sandbox.pause()
        assert details(server)["kind"] == "sqlite"
        server.stop()

        moved = firkin(server, "cluster", "init", *options)
        assert moved.returncode == 0 and '["sandboxes",1]' in moved.stdout.replace(" ", "").replace("\n", ""), moved.stdout + moved.stderr
        without = firkin(server, "up", "--yes", "--listen", "127.0.0.1:0")
        assert without.returncode == 1 and "--catalog" in without.stderr, "a server began anew on files that another catalogue names"
        open_to_all = firkin(server, "cluster", "backup", "-", "--catalog", postgres.url.replace("@", ":hush@"))
        assert open_to_all.returncode == 1 and "--catalog-password-file" in open_to_all.stderr and "hush" not in open_to_all.stderr

        server.start(*options)
        kind, address = (details(server)[key] for key in ("kind", "address"))
        assert kind == "postgresql" and address == f"postgres://127.0.0.1:{postgres.port}/postgres"
        sandbox = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **server.client)
        assert sandbox.files.read("kept") == "from before"

        other = servers()
        taken = firkin(other, "up", "--yes", "--listen", "127.0.0.1:0", *options)
        assert taken.returncode == 1 and "catalogue" in taken.stderr, "two servers had one catalogue"

        postgres.stop()
        assert sandbox.commands.run("cat kept").stdout == "from before", "what runs needs no catalogue"
        refused = create(server)
        assert (refused.status_code, refused.json()["error_code"]) == (503, "catalog_unavailable"), refused.text
        assert refused.headers["retry-after"] and details(server)["away"]
        postgres.start()
        created = wait_for(lambda: (answer := create(server)).is_success and answer.json(), "a create once the database is back")
        assert httpx.delete(
            f"{server.url}/sandboxes/{created['sandboxID']}", headers={"X-API-Key": server.client["api_key"]}, timeout=WAIT_S
        ).is_success

        backup = tmp_path / "backup"
        saved = firkin(server, "cluster", "backup", backup, *options)
        assert saved.returncode == 0 and backup.stat().st_mode & 0o077 == 0, saved.stderr
        checked = firkin(server, "cluster", "restore-check", backup)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        damaged = tmp_path / "damaged"
        damaged.write_bytes(backup.read_bytes().replace(sandbox.sandbox_id.encode(), b"i" * len(sandbox.sandbox_id)))
        assert "no whole copy" in firkin(server, "cluster", "restore-check", damaged).stderr
    server.stop()
    looked = firkin(server, "doctor", "--json", *options)
    assert '"catalogue"' in looked.stdout and "PostgreSQL" in looked.stdout
