"""What every conformance test stands on: one running server, the unmodified SDK, and no sandbox left behind.

The server is found through the variables that `firkin env` prints: `E2B_API_KEY`, `E2B_API_URL`, `E2B_SANDBOX_URL` and others. Tests
under newest/ take a `driver`, once for the blocking SDK and once for the asynchronous one; the same test body serves both,
because `Blocking` runs each asynchronous call to its end on one event loop. Sandboxes that a test makes are killed by id in
a finalizer, and the session fails if the server still lists one when all tests are done.
"""

import asyncio
import threading

import pytest
from support import FACES, WAIT_S, Api, Blocking, Brood


@pytest.fixture(scope="session")
def api():
    api = Api()
    yield api
    api.close()


@pytest.fixture(autouse=True)
def engine_has_it(request, api):
    """Skips, by name and reason, what the engine that runs sandboxes here does not have: `@pytest.mark.lacking(gvisor="why")`."""
    for mark in request.node.iter_markers("lacking"):
        for engine, why in mark.kwargs.items():
            if api.engine() == engine:
                pytest.skip(f"{engine}: {why}")


@pytest.fixture(scope="session", autouse=True)
def nothing_left(api):
    """The last thing the session checks: every sandbox that was made has ended."""
    before = {sandbox["sandboxID"] for sandbox in api.listed()}
    yield
    left = [sandbox["sandboxID"] for sandbox in api.listed() if sandbox["sandboxID"] not in before]
    assert not left, f"the suite left sandboxes behind: {left}"


@pytest.fixture(scope="session")
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="async-sdk", daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT_S)


@pytest.fixture(scope="module", params=FACES)
def driver(request, loop):
    """The SDK's `Sandbox` class, blocking or asynchronous, callable in the same way."""
    import e2b  # here, not above: v1/ has another release of it, and takes no driver

    if request.param == "sync":
        return e2b.Sandbox
    return Blocking(e2b.AsyncSandbox, loop)


@pytest.fixture(scope="module")
def sdk(driver, loop):
    """Another class of the same SDK: `sdk("Secret")` is `e2b.Secret`, or `e2b.AsyncSecret` whose calls block."""
    import e2b

    if driver is e2b.Sandbox:
        return lambda name: getattr(e2b, name)
    return lambda name: Blocking(getattr(e2b, f"Async{name}"), loop)


@pytest.fixture
def spawn(driver, api):
    """Creates sandboxes that end with the test: `spawn(template, metadata=...)`."""
    brood = Brood(driver, api)
    yield brood
    brood.end()


@pytest.fixture(scope="module")
def sandbox(driver, api):
    """One sandbox that the tests of a module share. They must not end it, and keep to their own `folder`."""
    brood = Brood(driver, api)
    yield brood(envs={"FROM_CREATE": "create", "SHADOWED": "create"})
    brood.end()


@pytest.fixture
def folder(request, sandbox) -> str:
    """A directory of the test's own in the shared sandbox."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    path = f"/home/user/{name}"
    assert sandbox.files.make_dir(path)
    return path
