"""Outbound rules with names, and through a proxy, against a little internet beside the host."""

import json
import shlex

import pytest
from outside import ALLOWED, OTHER, PASSWORD, PROXY, RESOLVER, USER, outside  # noqa: F401 (a fixture)
from support import GUEST_PROGRAMS, wait_for

ALL = "0.0.0.0/0"
NAMED = {"deny_out": [ALL], "allow_out": ["allowed.test", "*.wild.test", "ours.test"], "dns_servers": [RESOLVER]}


def reach(sandbox, *tries) -> list:
    """What comes of these attempts, inside the sandbox."""
    path = "/home/user/reach.py"
    if not sandbox.files.exists(path):
        sandbox.files.write(path, (GUEST_PROGRAMS / "reach.py").read_text())
    words = " ".join(shlex.quote(json.dumps(attempt)) for attempt in tries)
    return json.loads(sandbox.commands.run(f"python3 {path} {words}", timeout=180).stdout)


def is_at(answer, address: str) -> bool:
    return isinstance(answer, dict) and answer["at"] == address


def decisions(api, sandbox) -> list[dict]:
    return api.http.get(f"/sandboxes/{sandbox.sandbox_id}/network/audit").raise_for_status().json()


def test_allowed_names_are_reached_and_nothing_else_is(driver, spawn, outside, api):
    sandbox = spawn(network=NAMED)
    outside.forget()
    by_name, over_tls, below, itself, other = reach(
        sandbox,
        ["http", "allowed.test", "allowed.test"],
        ["tls", "allowed.test", "allowed.test"],
        ["http", "deep.wild.test", "deep.wild.test"],
        ["http", "wild.test", "wild.test"],
        ["http", "other.test", "other.test"],
    )
    assert is_at(by_name, ALLOWED) and is_at(over_tls, ALLOWED) and is_at(below, OTHER)
    assert itself == other == "gaierror"

    literal, literal_tls, called, called_tls, ours, quic = reach(
        sandbox,
        ["http", OTHER, "other.test"],
        ["tls", OTHER, "other.test"],
        ["http", OTHER, "allowed.test"],
        ["tls", OTHER, "allowed.test"],
        ["http", "ours.test", "ours.test"],
        ["udp", ALLOWED, 443],
    )
    assert literal == 403 and literal_tls == "SSLError", "an address is not the name that it claims"
    # Where a client believes to be matters nothing: the host of the name answers.
    assert is_at(called, ALLOWED) and is_at(called_tls, ALLOWED)
    assert ours == "gaierror", "a name that leads into private networks leads nowhere"
    assert quic == "TimeoutError", "what is not TCP has no name"

    # No question for anything else leaves, whomever it is put to.
    secret = "password-is-hunter2.evil.test"
    own, to_other, allowed = reach(sandbox, ["name", secret], ["question", OTHER, secret], ["question", "9.9.9.9", "allowed.test", "must"])
    assert own == "gaierror"
    assert to_other["answers"] == 0 and to_other["code"] != 0
    assert allowed == {"code": 0, "answers": 1}
    wait_for(lambda: outside.asked() == {"allowed.test", "deep.wild.test", "ours.test"}, "the resolver to tell what it was asked")

    told = decisions(api, sandbox)
    assert {"allowed", "name", "bounds"} <= {decision["outcome"] for decision in told}
    connected = [decision for decision in told if decision["kind"] == "tcp" and decision["allowed"]]
    assert {(decision["name"], decision["address"]) for decision in connected} == {
        ("allowed.test", ALLOWED),
        ("deep.wild.test", OTHER),
    }
    assert any(decision["name"] == secret and not decision["allowed"] for decision in told)


def test_rules_with_names_change_while_it_runs(driver, spawn, outside, api):
    sandbox = spawn(network=NAMED)
    tries = [["http", "allowed.test", "allowed.test"], ["http", OTHER, "other.test"]]
    first, second = reach(sandbox, *tries)
    assert is_at(first, ALLOWED) and second == 403
    sandbox.update_network({**NAMED, "allow_out": ["other.test"]})
    first, second = reach(sandbox, *tries)
    assert first == "gaierror" and is_at(second, OTHER)
    # What is allowed by address needs no name, and goes there itself.
    sandbox.update_network({**NAMED, "allow_out": ["other.test", ALLOWED]})
    answers = reach(sandbox, ["http", ALLOWED, "whatever.test"], ["udp", ALLOWED, 443, "must"], ["http", OTHER, "whatever.test"])
    assert is_at(answers[0], ALLOWED) and answers[1:] == ["hello", 403]
    sandbox.pause()
    sandbox.connect()
    answers = reach(sandbox, *tries)
    assert answers[0] == "gaierror" and is_at(answers[1], OTHER)
    sandbox.update_network({"allow_internet_access": False})
    assert reach(sandbox, ["udp", ALLOWED, 443], ["question", RESOLVER, "other.test"]) == ["TimeoutError", "TimeoutError"]
    for _ in range(8):
        sandbox.update_network({})
        sandbox.update_network(NAMED)
    # Without rules everything is as it is without them.
    sandbox.update_network({})
    answers = reach(sandbox, ["http", ALLOWED, "whatever.test"], ["http", OTHER, "allowed.test"], ["udp", OTHER, 443, "must"])
    assert is_at(answers[0], ALLOWED) and is_at(answers[1], OTHER) and answers[2] == "hello"
    assert decisions(api, sandbox) == []


def test_no_resolver_is_no_name(driver, spawn, outside):
    outside.forget()
    sandbox = spawn(network={**NAMED, "dns_servers": []})
    named, question = reach(sandbox, ["http", "allowed.test", "allowed.test"], ["question", RESOLVER, "allowed.test"])
    assert named == "gaierror" and question["answers"] == 0
    assert outside.asked() == set()


def test_a_fork_has_the_rules_of_its_origin(driver, spawn, outside):
    sandbox = spawn(network=NAMED)
    sandbox.files.write("/home/user/reach.py", (GUEST_PROGRAMS / "reach.py").read_text())
    (fork,) = sandbox.fork()
    spawn.adopt(fork)
    first, second = reach(fork, ["http", "allowed.test", "allowed.test"], ["http", OTHER, "other.test"])
    assert is_at(first, ALLOWED) and second == 403


@pytest.mark.parametrize("named", [False, True])
def test_tcp_goes_through_the_proxy_or_nowhere(driver, spawn, outside, api, named):
    proxy = {"address": f"{PROXY}:1080", "username": USER, "password": PASSWORD}
    rules = NAMED if named else {}
    outside.forget()
    sandbox = spawn(network={**rules, "egress_proxy": proxy})
    allowed, other = reach(sandbox, ["http", ALLOWED, "allowed.test"], ["http", OTHER, "other.test"])
    assert is_at(allowed, ALLOWED) and allowed["by"] == PROXY
    assert (other == 403) if named else (other["by"] == PROXY)
    expected = [f"{ALLOWED}:80"] + ([] if named else [f"{OTHER}:80"])
    wait_for(lambda: outside.proxied() == expected, "the proxy to tell what it connected")

    shown = api.http.get(f"/sandboxes/{sandbox.sandbox_id}")
    assert shown.json()["network"]["egressProxy"] == {"address": f"{PROXY}:1080", "username": USER}
    assert PASSWORD not in shown.text
    assert sandbox.get_info().network["egress_proxy"] == {"address": f"{PROXY}:1080", "username": USER}

    # A proxy that does not take us is no reason to go without it.
    sandbox.update_network({**rules, "egress_proxy": {**proxy, "password": "wrong"}})
    # Whoever is not listened to for a name is not answered in its protocol either.
    assert reach(sandbox, ["http", ALLOWED, "allowed.test"]) == [502 if named else "ConnectionResetError"]
    sandbox.update_network(rules)

    def is_without_proxy() -> bool:
        (answer,) = reach(sandbox, ["http", ALLOWED, "allowed.test"])
        return is_at(answer, ALLOWED) and answer["by"] != PROXY

    wait_for(is_without_proxy, "the way without a proxy")
