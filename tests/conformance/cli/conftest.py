"""E2B's own command line, as a person and as a script would call it: `e2b` is found below the directory that NODE_MODULES names."""

import os
import pathlib
import subprocess

import pexpect
import pytest
from support import SANDBOX_LIFETIME_S, WAIT_S


class Cli:
    """Runs `e2b` with a home directory of its own: the caller's configuration must not count."""

    def __init__(self, home: pathlib.Path, node_modules: str) -> None:
        self.program = os.path.join(node_modules, ".bin", "e2b")
        self.environment = os.environ | {"HOME": str(home), "NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1"}

    def run(self, *words: str, status: int = 0, stdin: bytes = b"", wait_s: float = WAIT_S) -> str:
        """The standard output of a call that has to end with `status`. Standard input is a pipe."""
        result = subprocess.run([self.program, *words], input=stdin, capture_output=True, env=self.environment, timeout=wait_s)
        said = f"e2b {' '.join(words)}: {result.returncode}\n{result.stdout.decode()}\n{result.stderr.decode()}"
        assert result.returncode == status, said
        return result.stdout.decode()

    def fails(self, *words: str) -> str:
        """The standard error of a call that has to fail."""
        result = subprocess.run([self.program, *words], stdin=subprocess.DEVNULL, capture_output=True, env=self.environment, timeout=WAIT_S)
        assert result.returncode != 0, f"e2b {' '.join(words)} succeeded: {result.stdout.decode()}"
        return result.stderr.decode()

    def terminal(self, *words: str) -> pexpect.spawn:
        """The program on a terminal of 30 rows and 100 columns."""
        return pexpect.spawn(self.program, list(words), env=self.environment, encoding="utf-8", timeout=WAIT_S, dimensions=(30, 100))


@pytest.fixture(scope="session")
def cli(tmp_path_factory):
    if "NODE_MODULES" not in os.environ:
        pytest.exit("NODE_MODULES is not set: it names the directory where npm has put @e2b/cli", returncode=4)
    return Cli(tmp_path_factory.mktemp("home"), os.environ["NODE_MODULES"])


@pytest.fixture(scope="module")
def sandbox(cli, api):
    """The id of one sandbox that the tests of a module share."""
    sandbox_id = cli.run("sandbox", "create", "base", "--detach", "--timeout", str(SANDBOX_LIFETIME_S)).split()[-1]
    yield sandbox_id
    api.kill(sandbox_id)
