"""The code interpreter's SDK in place of the plain one: it asks for its own template by default."""

import pytest
from support import FACES, Blocking, Brood


@pytest.fixture(scope="module", params=FACES)
def driver(request, loop):
    """The code interpreter SDK's `Sandbox` class, blocking or asynchronous, callable in the same way."""
    import e2b_code_interpreter

    if request.param == "sync":
        return e2b_code_interpreter.Sandbox
    return Blocking(e2b_code_interpreter.AsyncSandbox, loop)


@pytest.fixture(scope="module")
def sandbox(driver, api):
    """One sandbox that the tests of a module share. They must not end it."""
    brood = Brood(driver, api)
    yield brood(envs={"FROM_CREATE": "create"})
    brood.end()
