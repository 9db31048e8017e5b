"""The Debian package: installed into a root of its own, its unit's command started, upgraded under a running sandbox, removed.

dpkg installs, runs the maintainer scripts and keeps what an administrator changed; only the root is another one (`--force-script-chrootless`). The
program is the one that the suite runs.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess

import e2b
import pytest
from own_server import sandboxes_of
from support import SANDBOX_LIFETIME_S, WAIT_S
from systemd import UnitServer, answer, confined, ended, setting

ONLY_GVISOR = "where the suite has gVisor, the package is tried with it: a server is there in a second"

pytestmark = pytest.mark.lacking(emulated=ONLY_GVISOR, kvm=ONLY_GVISOR)

START_S = 120
BUILD = pathlib.Path(__file__).parents[3] / "packaging" / "debian" / "build"


def packed(program: str, version: str, directory: pathlib.Path) -> str:
    # Debugging information out, or a test's package is as large as the disk is patient.
    env = os.environ | {"STRIP": "1", "COMPRESSION": "none"}
    built = subprocess.run([BUILD, program, version, directory], env=env, capture_output=True, text=True, timeout=WAIT_S)
    assert built.returncode == 0, built.stderr
    return built.stdout.strip()


class Root:
    """A root that packages are installed into."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        for directory in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"):
            (path / directory).mkdir(parents=True)
        (path / "var/lib/dpkg/status").touch()

    def dpkg(self, *words: str) -> str:
        # Dependencies are the host's, and there already.
        options = [f"--root={self.path}", "--force-script-chrootless", "--force-depends", f"--log={self.path}/var/log/dpkg.log"]
        done = subprocess.run(["dpkg", *options, *words], capture_output=True, text=True, timeout=WAIT_S, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"dpkg {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def version(self) -> str:
        asked = ["dpkg-query", f"--admindir={self.path}/var/lib/dpkg", "-W", "-f", "${Status} ${Version}", "firkin"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    def enabled(self) -> set[str]:
        return {f"{link.parent.name}/{link.name}" for link in (self.path / "etc/systemd/system").glob("*.wants/*")}


@pytest.fixture
def root(tmp_path):
    # pytest keeps directories of tests that passed: these are hundreds of megabytes.
    yield Root(tmp_path / "root")
    shutil.rmtree(tmp_path)


def test_a_package_is_installed_upgraded_under_a_running_sandbox_and_removed(root, tmp_path):
    program = os.environ.get("FIRKIN_BIN")
    if program is None or shutil.which("dpkg-deb") is None:
        pytest.skip("FIRKIN_BIN does not name the program, or there is no dpkg-deb: nothing can be packed")
    first = packed(program, "0.1.0", tmp_path)
    root.dpkg("--install", first)
    os.unlink(first)
    installed = root.path / "usr/bin/firkin"
    unit = root.path / "usr/lib/systemd/system/firkin.service"
    assert root.enabled() == {"multi-user.target.wants/firkin.service", "sockets.target.wants/firkin.socket"}
    for made in ("man/man1/firkin-up.1.gz", "bash-completion/completions/firkin", "doc/firkin/changelog.gz"):
        assert (root.path / "usr/share" / made).stat().st_size > 0, made
    # The administrator decides some things, and disables the unit for now.
    configuration = root.path / "etc/firkin/firkin.toml"
    assert 'on-exit = "leave"\n' in configuration.read_text(), "an upgrade would end sandboxes"
    [exec_start] = setting(unit, "ExecStart")
    server = UnitServer([*confined(unit), *exec_start.replace("/usr/bin/firkin", str(installed)).split()])
    try:
        ours = f'state-dir = "{server.state}"\nengine = "gvisor"\nwarm = 0\n'
        if cache := os.environ.get("FIRKIN_CACHE_DIR"):
            ours += f'cache-dir = "{cache}"\n'
        configuration.write_text(configuration.read_text() + ours)
        (root.path / "etc/systemd/system/multi-user.target.wants/firkin.service").unlink()
        # Variables go before the file, and the suite's own are for other servers.
        for name in ("FIRKIN_STATE_DIR", "FIRKIN_ENGINE"):
            server.env[name] = ""
        server.env["FIRKIN_CONFIG"] = str(configuration)
        upgraded_under_a_running_sandbox(root, server, installed, packed(program, "0.2.0~next", tmp_path))
    finally:
        server.remove()
    root.dpkg("--purge", "firkin")
    left = [path for path in root.path.rglob("*") if "firkin" in path.name and "var/l" not in str(path)]
    assert not left, left


def upgraded_under_a_running_sandbox(root: Root, server: UnitServer, installed: pathlib.Path, second: str) -> None:
    server.start()
    server.wait_told("READY=1", START_S)
    with sandboxes_of(server) as create:
        sandbox = create()
        sandbox.commands.run("echo $$ > /tmp/kept; sleep 600", background=True)
        machines = server.machines()
        root.dpkg("--install", second)
        assert root.version() == "install ok installed 0.2.0~next"
        assert root.enabled() == {"sockets.target.wants/firkin.socket"}, "what was disabled is enabled again"
        configuration = root.path / "etc/firkin/firkin.toml"
        assert str(server.state) in configuration.read_text(), "what the administrator wrote is gone"
        env = {name: value for name, value in (os.environ | server.env).items() if value}
        checked = subprocess.run([installed, "upgrade-check", "--json"], env=env, capture_output=True, text=True, timeout=WAIT_S)
        assert json.loads(checked.stdout)["adoptable"], checked.stdout + checked.stderr
        shown = subprocess.run([installed, "config", "show", "--json"], env=env, capture_output=True, text=True, timeout=WAIT_S)
        said = {row["key"]: row for row in json.loads(shown.stdout)["settings"]}
        assert (said["on-exit"]["value"], said["engine"]["source"]) == ("leave", "file"), shown.stdout
        assert re.search(r"/firkin.toml:\d+$", said["warm"]["from"])

        # As `systemctl restart` does: the old one is told to stop, and the new program takes its place.
        ended(server)
        assert server.machines() == machines, "the sandbox went with the old version"
        between = server.knock()
        server.start()
        server.wait_told("READY=1", START_S)
        assert answer(between) == b"HTTP/1.1 200"
        assert os.readlink(f"/proc/{server.process.pid}/exe") == str(installed)
        found = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **server.client)
        assert found.commands.run("kill -0 $(cat /tmp/kept) && echo alive").stdout == "alive\n"
    ended(server)
