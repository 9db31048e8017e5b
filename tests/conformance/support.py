"""Tools of the conformance tests: the raw HTTP interface, the asynchronous SDK made to block, waiting, guest programs."""

import asyncio
import functools
import inspect
import os
import pathlib
import threading
import time
import urllib.parse

import httpx
import pytest

SANDBOX_LIFETIME_S = 900
"""Longer than the whole suite: a sandbox that ends early fails a test for the wrong reason."""

WAIT_S = 60
"""Bound of every wait for a level. Emulated guests are slow; nothing that works takes this long."""

FACES = os.environ.get("SDK_FACES", "sync,async").split(",")
"""Which of the SDK's two faces are driven: a run on several engines need not have both on each."""

GUEST_PROGRAMS = pathlib.Path(__file__).parent / "guest"


def wait_for(probe, what: str, timeout_s: float = WAIT_S):
    """Asks `probe` until it answers something true, and returns that. Fails, naming `what`, at the deadline."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain for {what}")
        pause.wait(0.05)


def wait_for_clock(monotonic_s: float) -> None:
    """Returns once the host's own clock has passed `monotonic_s`: for tests about the passage of time itself."""
    wait_for(lambda: time.monotonic() >= monotonic_s, "the host's clock")


class Api:
    """The server's HTTP interface without an SDK: for what an SDK hides, and for cleaning up."""

    def __init__(self) -> None:
        try:
            self.key = os.environ["E2B_API_KEY"]
            self.url = os.environ["E2B_API_URL"].rstrip("/")
            self.sandbox_url = os.environ["E2B_SANDBOX_URL"].rstrip("/")
        except KeyError as missing:
            pytest.exit(f"{missing} is not set: start a server and run eval \"$(firkin env)\" first", returncode=4)
        self.http = httpx.Client(base_url=self.url, headers={"X-API-Key": self.key}, timeout=WAIT_S)
        self.anonymous = httpx.Client(base_url=self.url, timeout=WAIT_S)

    def through_proxy(self, sandbox_id: str, port: int, headers: dict | None = None, **client) -> httpx.Client:
        """A client whose requests reach `port` inside a sandbox, by routing headers."""
        routing = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)}
        return httpx.Client(base_url=self.sandbox_url, headers=routing | (headers or {}), timeout=WAIT_S, **client)

    def kill(self, sandbox_id: str) -> None:
        response = self.http.delete(f"/sandboxes/{sandbox_id}")
        assert response.status_code in (204, 404), f"cannot kill {sandbox_id}: {response.status_code} {response.text}"

    def delete_snapshot(self, snapshot_id: str) -> None:
        response = self.http.delete(f"/templates/{urllib.parse.quote(snapshot_id, safe='')}")
        assert response.status_code in (204, 404), f"cannot delete {snapshot_id}: {response.status_code} {response.text}"

    def listed(self) -> list[dict]:
        response = self.http.get("/v2/sandboxes", params={"state": "running,paused", "limit": 100})
        response.raise_for_status()
        return response.json()

    @functools.cache
    def engine(self) -> str:
        """What runs the sandboxes that are made of `base`: `kvm`, `gvisor` or `emulated`."""
        response = self.http.get("/health", params={"details": ""})
        response.raise_for_status()
        return response.json()["engines"][0]

    def close(self) -> None:
        self.http.close()
        self.anonymous.close()


class Blocking:
    """An object of the asynchronous SDK whose calls block: each runs to its end on `loop`, which another thread drives.

    Callbacks run on that thread. Objects of the asynchronous SDK in results are wrapped in turn; all else is passed through.
    """

    def __init__(self, target, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str):
        value = getattr(self._target, name)
        if not callable(value):
            return self._wrap(value)

        def call(*args, **kwargs):
            async def invoke():
                result = value(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

            return self._wrap(asyncio.run_coroutine_threadsafe(invoke(), self._loop).result())

        return call

    def __iter__(self):
        while True:
            try:
                yield self.__getattr__("__anext__")()
            except StopAsyncIteration:
                return

    def _wrap(self, value):
        if isinstance(value, list):
            return [self._wrap(item) for item in value]
        modules = ("e2b.sandbox_async", "e2b.secret.secret_async", "e2b.volume.volume_async", "e2b_code_interpreter.code_interpreter_async")
        asynchronous = type(value).__module__.startswith(modules) or hasattr(value, "__anext__")
        return Blocking(value, self._loop) if asynchronous else value


class Brood:
    """Sandboxes and snapshots of one scope; `end` removes those that are still there."""

    def __init__(self, Sandbox, api: Api) -> None:
        self.Sandbox = Sandbox
        self._api = api
        self._sandboxes: list[str] = []
        self._snapshots: list[str] = []

    def __call__(self, template: str | None = None, **options):
        options.setdefault("timeout", SANDBOX_LIFETIME_S)
        return self.adopt(self.Sandbox.create(template, **options))

    def adopt(self, sandbox):
        self._sandboxes.append(sandbox.sandbox_id)
        return sandbox

    def snapshot(self, sandbox, **options):
        info = sandbox.create_snapshot(**options)
        self._snapshots.append(info.snapshot_id)
        return info

    def end(self) -> None:
        for sandbox_id in reversed(self._sandboxes):
            self._api.kill(sandbox_id)
        for snapshot_id in reversed(self._snapshots):
            self._api.delete_snapshot(snapshot_id)


def start_guest_program(sandbox, name: str, port: int, arguments: str = ""):
    """Starts a program of guest/ in a sandbox and returns its handle once its port is open."""
    sandbox.files.write(f"/home/user/{name}", (GUEST_PROGRAMS / name).read_text())
    handle = sandbox.commands.run(f"exec python3 /home/user/{name} {arguments}", background=True, timeout=0)
    wait_for_port(sandbox, port)
    return handle


def wait_for_port(sandbox, port: int) -> None:
    """Returns once something inside the sandbox listens on `port`."""
    sandbox.commands.run(f"until (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done", timeout=WAIT_S)
