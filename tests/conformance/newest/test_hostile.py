"""Malformed requests leave server and guest as they were."""

import e2b
import hostile
import pytest
from support import Brood

SERVER_GROWTH_BYTES = 96 << 20
"""What the server may hold more afterwards: buffers that its allocator keeps, not requests."""

GUEST_AGENT_KIB = 48 << 10
"""The most that the agent may hold: a quarter of it is the program."""


@pytest.fixture(scope="module")
def victim(api):
    brood = Brood(e2b.Sandbox, api)
    yield brood()
    brood.end()


def resident_bytes(api) -> int:
    (line,) = [line for line in api.http.get("/metrics").text.splitlines() if line.startswith("firkin_resident_bytes")]
    return int(float(line.split()[-1]))


def agent_kib(sandbox) -> int:
    return int(sandbox.commands.run("awk '/VmRSS/ {print $2}' /proc/1/status").stdout)


def test_ten_thousand_malformed_requests_do_no_harm(api, victim):
    listed = {each["sandboxID"] for each in api.listed()}
    before = resident_bytes(api)
    token = victim._envd_access_token
    answers = hostile.bombard(api.url, hostile.control_plane(api.key), 6000, seed=1)
    answers += hostile.bombard(api.sandbox_url, hostile.proxy(), 3400, seed=2)
    answers += hostile.bombard(api.sandbox_url, hostile.data_plane(victim.sandbox_id, token), 600, seed=3)
    assert answers.total() == 10_000 and answers["silence"] == 0, answers
    # The many are told what is wrong; what is not HTTP at all may be hung up on.
    told = sum(count for line, count in answers.items() if line.startswith("HTTP/1.1 4"))
    assert told > 6000, answers
    failed = {line: count for line, count in answers.items() if line.startswith("HTTP/1.1 5") and line[9:12] != "502"}
    assert not failed, answers

    assert api.anonymous.get("/health").status_code < 300
    assert {each["sandboxID"] for each in api.listed()} == listed
    assert victim.commands.run("echo well").stdout == "well\n"
    assert victim.files.read("/etc/hostname").strip() == victim.sandbox_id
    assert resident_bytes(api) - before < SERVER_GROWTH_BYTES
    assert agent_kib(victim) < GUEST_AGENT_KIB
