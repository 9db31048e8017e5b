"""A cluster that a test may kill node by node, on a PostgreSQL of its own."""

import json
import os
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from own_server import FreePort, OwnServer
from postgres import Postgres
from support import WAIT_S

ONLY_GVISOR = "where the suite has gVisor, a cluster is tried with it: a server is there in a second"


class Cluster:
    """Nodes of one cluster, each of which a test may kill."""

    def __init__(self, program: str, database: Postgres) -> None:
        self.program, self.database = program, database
        self.password = ("--catalog-password-file", str(database.dir / "password"))
        self.secret = database.dir / "cluster.secret"
        self.options = ("--cluster", database.url, "--cluster-secret-file", str(self.secret), *self.password)
        self.servers: list[OwnServer] = []

    def node(self, name: str, *options: str) -> OwnServer:
        server = OwnServer(self.program)
        self.servers.append(server)
        server.peers = FreePort()
        server.as_node = (*self.options, "--node-name", name, "--peer-listen", f"127.0.0.1:{server.peers.number}", *options)
        return server

    def firkin(self, *words, fails: bool = False) -> str:
        """What a command prints; where it fails, what it says."""
        line = [self.program, *map(str, words)]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    def ended(self, line: list) -> tuple[int, str, str]:
        """How a command ends, what it prints and what it says."""
        done = subprocess.run(list(map(str, line)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S)
        return done.returncode, done.stdout, done.stderr

    def nodes(self) -> dict[str, dict]:
        return {node["name"]: node for node in json.loads(self.firkin("node", "ls", "--json", *self.options))}

    def refused(self, server: OwnServer, *options) -> str:
        """Why a server does not begin."""
        return self.firkin("up", "--yes", "--listen", "127.0.0.1:0", "--state-dir", server.state, *options, fails=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program: these tests need servers of their own")
    database = Postgres()
    cluster = Cluster(program, database)
    try:
        yield cluster
    finally:
        for server in cluster.servers:
            server.remove()
            server.peers.give_back()
        database.remove()


def listed(server: OwnServer, key: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v2/sandboxes", headers={"X-API-Key": key}, timeout=WAIT_S)


def at(server: OwnServer, key: str, sandbox) -> httpx.Response:
    return httpx.get(f"{server.url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": key}, timeout=WAIT_S)
