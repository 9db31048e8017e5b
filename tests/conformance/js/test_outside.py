"""The JavaScript SDK on what a sandbox reaches, holds and shares: `outside.mjs` under Node's own test runner.

It is run from here because hosts outside and a server that believes them are made here. That server's host asks the resolver outside:
this SDK has no `dnsServers`. Node is on the path, and NODE_MODULES names the directory where npm has put `e2b`.
"""

import json
import os
import pathlib
import shutil
import subprocess

import pytest
from outside import ALLOWED, OTHER, PASSWORD, PROXY, RESOLVER, USER, outside  # noqa: F401 (a fixture)
from own_server import own_server

HERE = pathlib.Path(__file__).parent
SUITE_S = 600
"""All of its tests, where guests are emulated on a busy host."""


@pytest.mark.timeout(SUITE_S + 120)
def test_the_javascript_sdk(outside, tmp_path):  # noqa: F811
    if "NODE_MODULES" not in os.environ:
        pytest.exit("NODE_MODULES is not set: it names the directory where npm has put e2b", returncode=4)
    (tmp_path / "node_modules").symlink_to(os.environ["NODE_MODULES"])
    shutil.copy(HERE / "outside.mjs", tmp_path)
    world = {"allowed": ALLOWED, "other": OTHER, "proxy": PROXY, "user": USER, "password": PASSWORD}
    certificates = {"SSL_CERT_FILE": str(outside.authority)}
    with own_server("--identity-issuer", "https://firkin.test", resolver=RESOLVER, **certificates) as server:
        client = {f"E2B_{name.upper()}": value for name, value in server.client.items()} | {"E2B_VOLUME_API_URL": server.url}
        ran = subprocess.run(
            ["node", "--test", "--test-reporter=spec", "outside.mjs"],
            cwd=tmp_path,
            env=os.environ | client | {"OUTSIDE": json.dumps(world | {"authority": str(outside.authority)})},
            capture_output=True,
            text=True,
            timeout=SUITE_S,
        )
    print(ran.stdout, ran.stderr)
    assert ran.returncode == 0
