"""Memory may be left behind: the disk is kept, and a kernel boots from it."""

import pytest
from e2b import SandboxState

pytestmark = pytest.mark.lacking(gvisor="a sandbox has its files in its memory, which cannot be dropped")

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def mark(sandbox) -> str:
    """Leaves a file and a process, and tells which boot it is."""
    sandbox.files.write("/home/user/kept.txt", "kept")
    sandbox.commands.run("sleep 86399", background=True, timeout=0)
    return sandbox.files.read(BOOT_ID)


def sleeps(sandbox) -> bool:
    """Whether the process of `mark` lives. The brackets keep the question from finding itself."""
    return sandbox.commands.run("pgrep -f '[s]leep 86399' || true").stdout != ""


def test_a_pause_without_memory_boots_from_the_same_files(spawn):
    sandbox = spawn(envs={"KEPT": "yes"})
    before = mark(sandbox)

    assert sandbox.pause(mode="filesystem") is True
    assert sandbox.get_info().state == SandboxState.PAUSED
    sandbox.connect()
    booted = sandbox.files.read(BOOT_ID)
    assert booted != before
    assert sandbox.files.read("/home/user/kept.txt") == "kept"
    assert not sleeps(sandbox)
    assert sandbox.commands.run("hostname; echo $KEPT").stdout == f"{sandbox.sandbox_id}\nyes\n"

    # From here on it has memory like any other.
    mark(sandbox)
    sandbox.pause()
    sandbox.connect()
    assert sandbox.files.read(BOOT_ID) == booted
    assert sleeps(sandbox)


def test_a_resume_may_reboot_what_was_paused_with_memory(spawn):
    sandbox = spawn()
    before = mark(sandbox)
    sandbox.pause()
    sandbox.connect(on_resume="reboot")
    assert sandbox.files.read(BOOT_ID) != before
    assert sandbox.files.read("/home/user/kept.txt") == "kept"
    assert not sleeps(sandbox)
