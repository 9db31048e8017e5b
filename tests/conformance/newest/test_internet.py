"""Outbound rules with addresses, as E2B's own tests of its SDKs put them to hosts of the internet: here they are beside the host.

The asking is curl's, which believes the certificates of these hosts by their authority.
"""

import pytest
from e2b import CommandExitException
from outside import ALLOWED, OTHER, outside  # noqa: F401 (a fixture)

AUTHORITY = "/home/user/authority.pem"


@pytest.fixture
def create(spawn, outside):  # noqa: F811
    """Creates sandboxes that believe in the hosts outside."""

    def create(**options):
        sandbox = spawn(**options)
        sandbox.files.write(AUTHORITY, outside.authority.read_text())
        return sandbox

    return create


def reached(sandbox, address: str, is_open: bool) -> bool:
    # What is to be reached has time also where the guest is emulated, and what is not is not waited for.
    patience_s = 60 if is_open else 5
    ask = f"curl --cacert {AUTHORITY} --connect-timeout {patience_s} --max-time 60 --silent --output /dev/null --write-out '%{{http_code}}'"
    try:
        return sandbox.commands.run(f"{ask} https://{address}", timeout=90).stdout == "200"
    except CommandExitException as refused:
        assert refused.exit_code in {7, 28}, f"neither closed nor silent: {refused}"
        return False


def assert_reaches(sandbox, allowed: bool, other: bool) -> None:
    assert (reached(sandbox, ALLOWED, allowed), reached(sandbox, OTHER, other)) == (allowed, other)


@pytest.mark.parametrize("options", [{}, {"allow_internet_access": True}])
def test_without_rules_everything_outside_is_reached(create, options):
    assert_reaches(create(**options), True, True)


@pytest.mark.parametrize("options", [{"allow_internet_access": False}, {"network": {"deny_out": lambda all: [all.all_traffic]}}])
def test_all_traffic_can_be_denied(create, options):
    assert_reaches(create(**options), False, False)


def test_an_allowed_address_is_reached_whatever_is_denied(create):
    all_denied = {"deny_out": lambda all: [all.all_traffic]}
    assert_reaches(create(network={**all_denied, "allow_out": [ALLOWED]}), True, False)
    assert_reaches(create(network={**all_denied, "allow_out": [ALLOWED, OTHER]}), True, True)
    assert_reaches(create(network={"deny_out": [ALLOWED, OTHER], "allow_out": [OTHER]}), False, True)


def test_a_denied_address_is_not_reached_and_others_are(create):
    assert_reaches(create(network={"deny_out": [OTHER]}), True, False)


def test_an_update_takes_the_place_of_all_rules(create):
    sandbox = create()
    assert_reaches(sandbox, True, True)
    sandbox.update_network({"deny_out": [OTHER]})
    assert_reaches(sandbox, True, False)
    sandbox.update_network({"deny_out": lambda all: [all.all_traffic], "allow_out": [OTHER]})
    assert_reaches(sandbox, False, True)
    # What is left out is cleared.
    sandbox.update_network({})
    assert_reaches(sandbox, True, True)
