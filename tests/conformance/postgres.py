"""A PostgreSQL of one test: Debian's programs, in a directory of its own, as a user who is nobody, and gone with the test."""

import pathlib
import shutil
import signal
import subprocess
import tempfile

import pytest
from own_server import FreePort
from support import WAIT_S, wait_for

NOBODY = 65534
"""Whom Debian calls `nobody`: PostgreSQL refuses root."""

USER, PASSWORD = "firkin", "not for everyone"


class Postgres:
    """One server with one database, which takes a password."""

    def __init__(self) -> None:
        versions = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not versions:
            pytest.skip("the Debian package `postgresql` is not installed")
        self.programs = versions[-1].parent
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="firkin-postgres-", dir="/var/tmp"))
        shutil.chown(self.dir, NOBODY, NOBODY)
        (self.dir / "password").write_text(PASSWORD)
        (self.dir / "password").chmod(0o644)
        self._run(
            "initdb", f"--username={USER}", "--auth=scram-sha-256", f"--pwfile={self.dir}/password", "--no-sync", "--encoding=UTF8",
            "--locale=C", "-D", f"{self.dir}/data",
        )
        (self.dir / "password").chmod(0o600)
        shutil.chown(self.dir / "password", 0, 0)
        self.held = FreePort()
        self.port = self.held.number
        self.url = f"postgres://{USER}@127.0.0.1:{self.port}/postgres"
        self.process: subprocess.Popen | None = None
        self.start()

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self.programs / program, *words], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = ["fsync=off", "listen_addresses=127.0.0.1", "max_connections=40", "shared_buffers=16MB"]
        words = [word for setting in settings for word in ("-c", setting)]
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.dir / "data", "-p", str(self.port), "-k", self.dir, *words],
                user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_for(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL to answer", WAIT_S)

    def stop(self) -> None:
        """At once; sessions are cut."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(WAIT_S)
        self.process = None

    def sql(self, statements: str) -> None:
        """Does something to the database behind the servers' backs."""
        done = subprocess.run(
            [self.programs / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", statements],
            env={"PGPASSWORD": PASSWORD}, capture_output=True, text=True, timeout=WAIT_S,
        )
        assert done.returncode == 0, done.stderr

    def remove(self) -> None:
        if self.process is not None:
            self.stop()
        self.held.give_back()
        shutil.rmtree(self.dir)
