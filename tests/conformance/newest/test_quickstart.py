"""The tour of `firkin quickstart`, as a person takes it: one command, on a state directory of its own, that leaves nothing running.

The program makes its own server, so what the one that all other tests share runs does not matter.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

TOUR_S = 170
"""A tour with an emulated guest, the build of its base template included, on a busy machine."""


@pytest.fixture
def take(api):
    """Takes the tour with these options: its report, and what it said on the way."""
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program")
    # Machines run as users of their own, who must be able to enter it: not below a home directory.
    place = pathlib.Path(tempfile.mkdtemp(prefix="firkin-tour-", dir=os.environ.get("FIRKIN_TEST_DIR", "/var/tmp")))
    place.chmod(0o711)

    def take(*options: str) -> tuple[dict, str]:
        line = [program, "quickstart", "--yes", "--json", "--state-dir", place / "state", *options]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TOUR_S)
        assert done.returncode == 0, done.stderr
        assert not list((place / "state" / "run").iterdir()), "something was left running"
        return json.loads(done.stdout), done.stderr

    yield take
    shutil.rmtree(place)


@pytest.mark.lacking(emulated="where the suite has gVisor, this tour is taken there")
def test_the_tour_of_gvisor_ends_with_its_speed_beside_the_hosts(take):
    if not (shutil.which("runsc") and shutil.which("mkfs.erofs")):
        pytest.skip("gVisor is not installed: no runsc, or no mkfs.erofs")
    report, _ = take("--engine", "gvisor")
    assert report["acceleration"].startswith("gvisor")
    speed = report["speed"]
    assert speed["sandbox"]["loop_ms"] > 0 and speed["sandbox"]["digest_ms"] > 0
    if shutil.which("python3"):
        assert speed["host"]["loop_ms"] > 0 and speed["host"]["digest_ms"] > 0


@pytest.mark.lacking(gvisor="its sandboxes boot no kernel; where the suite has machines, one boots there")
def test_machines_boot_a_kernel_that_the_hosts_owner_brings(take, tmp_path):
    cache = pathlib.Path(os.environ.get("FIRKIN_CACHE_DIR", "/var/cache/firkin"))
    packaged = max(cache.glob("kernel-v*/*/vmlinuz"), key=lambda path: path.stat().st_mtime)
    # The same kernel to a machine, and another file by its digest: what comes after the image is no part of it.
    brought = tmp_path / "bzImage"
    brought.write_bytes(packaged.read_bytes() + b"brought")
    kept = set(cache.glob("own-kernel-v*/*"))
    report, said = take("--engine", "emulated", "--guest-kernel", str(brought))
    try:
        assert "emulated" in report["acceleration"]
        assert "guest kernel of your own" in said
        copies = [hashlib.sha256((entry / "vmlinuz").read_bytes()).digest() for entry in cache.glob("own-kernel-v*/*")]
        assert hashlib.sha256(brought.read_bytes()).digest() in copies
    finally:
        for entry in set(cache.glob("own-kernel-v*/*")) - kept:
            shutil.rmtree(entry)
