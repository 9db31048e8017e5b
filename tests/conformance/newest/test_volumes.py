"""Volumes in sandboxes: a directory that several share, which outlives their pauses and the server's end."""

import os
import uuid

import e2b
import pytest
from e2b import InvalidArgumentException, SandboxException
from own_server import OwnServer
from support import SANDBOX_LIFETIME_S, wait_for

AT = "/mnt/shared"


@pytest.fixture
def volumes(api):
    """Volumes by name, which end with the test. Its sandboxes end before it: name `volumes` before `spawn`."""
    made = []

    def make() -> str:
        answer = api.http.post("/volumes", json={"name": f"t-{uuid.uuid4().hex[:12]}"})
        assert answer.status_code == 201, answer.text
        made.append(answer.json())
        return made[-1]["name"]

    make.made = made
    yield make
    for volume in made:
        answer = api.http.delete(f"/volumes/{volume['volumeID']}")
        assert answer.status_code in (204, 404), answer.text


def run(sandbox, command: str, **options) -> str:
    return sandbox.commands.run(command, **options).stdout


def test_three_share_one_volume(volumes, spawn):
    name = volumes()
    one, two, three = (spawn(volume_mounts={AT: name}) for _ in range(3))
    run(one, f"cd {AT} && mkdir -p a/b && echo one > a/b/file && ln -s b/file a/link")
    assert run(two, f"cat {AT}/a/link") == "one\n"
    run(two, f"echo two >> {AT}/a/b/file && mv {AT}/a {AT}/moved")
    assert run(three, f"cat {AT}/moved/b/file") == "one\ntwo\n"
    # Known to one before, changed by another, opened again.
    for n in range(5):
        run(one, f"echo {n} > {AT}/counter")
        assert [run(other, f"cat {AT}/counter") for other in (two, three)] == [f"{n}\n"] * 2
    # Each writes its own lines, and none is lost.
    commands = [box.commands.run(f"for i in $(seq 100); do echo {n} $i >> {AT}/log; done", background=True) for n, box in enumerate((one, two, three))]
    for command in commands:
        command.wait()
    assert run(one, f"wc -l < {AT}/log; sort -u {AT}/log | wc -l").split() == ["300", "300"]
    assert run(two, f"stat -c %U {AT}/log") == "user\n"


def test_a_volume_is_there_across_pause_resume_and_fork(volumes, spawn):
    name = volumes()
    one, other = spawn(volume_mounts={AT: name}), spawn(volume_mounts={AT: name})
    run(one, f"echo before > {AT}/file")
    one.commands.run(f"exec 3<>{AT}/held; echo held >&3; while [ ! -e {AT}/go ]; do sleep 0.2; done; echo on >&3; cat {AT}/held", background=True, timeout=0)
    wait_for(lambda: run(other, f"cat {AT}/held || true") == "held\n", "the file that one holds")
    one.pause()
    run(other, f"echo meanwhile >> {AT}/file && mkdir {AT}/dir && mv {AT}/held {AT}/dir/held && ln {AT}/dir/held {AT}/held")
    one = one.connect(timeout=SANDBOX_LIFETIME_S)
    assert run(one, f"cat {AT}/file") == "before\nmeanwhile\n"
    run(other, f"touch {AT}/go")
    wait_for(lambda: run(other, f"cat {AT}/dir/held") == "held\non\n", "the process that held the file to go on")
    (forked,) = [child.sandbox if hasattr(child, "sandbox") else child for child in one.fork()]
    try:
        assert run(forked, f"cat {AT}/file; echo fork > {AT}/by-fork") == "before\nmeanwhile\n"
        assert run(one, f"cat {AT}/by-fork") == "fork\n"
    finally:
        forked.kill()
    assert run(one, "id -un") == "user\n"


def test_what_cannot_be_mounted_is_refused_before_anything_starts(volumes, spawn, driver, api):
    name = volumes()
    before = {sandbox["sandboxID"] for sandbox in api.listed()}
    for mounts, said in [({AT: "no-such-volume"}, "not found"), ({"relative": name}, "absolute"), ({"/proc/x": name}, "system"), ({"/a": name, "/a/b": name}, "above or below")]:
        with pytest.raises((InvalidArgumentException, SandboxException), match=said):
            driver.create(volume_mounts=mounts)
    assert {sandbox["sandboxID"] for sandbox in api.listed()} == before


def test_mounts_are_shown_and_keep_their_volume(volumes, spawn, api):
    name = volumes()
    sandbox = spawn(volume_mounts={AT: name})
    shown = api.http.get(f"/sandboxes/{sandbox.sandbox_id}").json()["volumeMounts"]
    assert shown == [{"name": name, "path": AT}]
    path = f"/volumes/{volumes.made[0]['volumeID']}"
    assert api.http.delete(path).status_code == 409
    sandbox.pause()
    assert api.http.delete(path).status_code == 409, "a paused sandbox has it too"
    sandbox.kill()
    assert api.http.delete(path).status_code == 204


def test_a_volume_may_be_read_only(volumes, api):
    name = volumes()
    body = {"templateID": "base", "timeout": SANDBOX_LIFETIME_S, "volumeMounts": [{"name": name, "path": AT, "readOnly": True}]}
    made = api.http.post("/v2/sandboxes", json=body)
    assert made.status_code == 201, made.text
    sandbox = e2b.Sandbox.connect(made.json()["sandboxID"])
    try:
        refused = sandbox.commands.run(f"sudo touch {AT}/x || sudo mount -o remount,rw {AT} && sudo touch {AT}/x; ls {AT}", on_stderr=None)
        assert refused.stdout == ""
        assert "Read-only" in refused.stderr
    finally:
        sandbox.kill()


def test_files_of_the_api_and_of_sandboxes_are_the_same(volumes, spawn, api):
    name = volumes()
    volume = volumes.made[0]
    content = f"/volumecontent/{volume['volumeID']}/file"
    bearer = {"Authorization": f"Bearer {volume['token']}"}
    assert api.anonymous.put(content, params={"path": "/up"}, content=b"uploaded", headers=bearer).status_code == 201
    sandbox = spawn(volume_mounts={AT: name})
    assert run(sandbox, f"cat {AT}/up") == "uploaded"
    run(sandbox, f"printf down > {AT}/down")
    assert api.anonymous.get(content, params={"path": "/down"}, headers=bearer).content == b"down"
    # What a link says is the guest's own affair: here it leads nowhere.
    run(sandbox, f"ln -s /etc {AT}/out && cat {AT}/out/passwd > /dev/null")
    assert api.anonymous.get(content, params={"path": "/out/passwd"}, headers=bearer).status_code in (400, 404)
    assert sandbox.files.read(f"{AT}/up") == "uploaded"


def test_a_command_goes_on_writing_after_the_server_was_killed():
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program: this test needs a server that it may kill")
    server = OwnServer(program)
    try:
        server.start()
        volume = e2b.Volume.create("shared", **{k: v for k, v in server.client.items() if k != "sandbox_url"})
        one, two = (e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, volume_mounts={AT: "shared"}, **server.client) for _ in range(2))
        script = f"mkdir {AT}/d; exec 3>{AT}/d/held; i=0; while :; do i=$((i+1)); echo $i >&3; echo $i > {AT}/last; echo $i > /tmp/last; done"
        one.commands.run(script, background=True, timeout=0)
        wait_for(lambda: int(run(two, f"cat {AT}/last || echo 0") or 0) > 20, "the first lines")
        server.kill()
        server.start()
        # Empty for as long as it is being written.
        reached = int(wait_for(lambda: run(one, "cat /tmp/last").strip(), "how far it has come"))
        wait_for(lambda: int(run(two, f"cat {AT}/last") or 0) > reached + 20, "lines after the server was killed")
        assert run(two, f"cat {AT}/d/held > /tmp/held; head -n $(wc -l < /tmp/held) /tmp/held | awk '$1 != NR {{ print; exit }}'") == ""
        for sandbox in (one, two):
            sandbox.kill()
        e2b.Volume.destroy(volume.volume_id, **{k: v for k, v in server.client.items() if k != "sandbox_url"})
        server.stop()
    finally:
        server.remove()


WRITERS, RESTARTS = 4, 6


@pytest.mark.lacking(emulated="where the suite has gVisor, this is tried there; machines have a server killed under a volume")
def test_what_was_appended_across_planned_restarts_is_there_once():
    """What was done is told before the server goes, or the next one would be asked for it again."""
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program: this test needs a server that it may restart")
    server = OwnServer(program)
    try:
        server.start("--on-exit", "leave")
        volume = e2b.Volume.create("shared", **{k: v for k, v in server.client.items() if k != "sandbox_url"})
        sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, volume_mounts={AT: "shared"}, **server.client)
        loop = f"i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i >> {AT}/$0; echo $i > /tmp/$0; done; touch /tmp/$0.ended"
        for writer in range(WRITERS):
            sandbox.commands.run(f"bash -c '{loop}' w{writer}", background=True, timeout=0)
        for _ in range(RESTARTS):
            so_far = int(wait_for(lambda: run(sandbox, "cat /tmp/w0 || true").strip(), "the first line"))
            wait_for(lambda so_far=so_far: int(run(sandbox, "cat /tmp/w0").strip() or 0) > so_far + 20, "lines to be appended")
            server.leave()
            server.start("--on-exit", "leave")
        run(sandbox, "touch /tmp/stop")
        wait_for(lambda: run(sandbox, "ls /tmp | grep -c ended || true").strip() == str(WRITERS), "the writers to end")
        for writer in range(WRITERS):
            # Each line is its own number: none is there twice, and none is missing.
            assert run(sandbox, f"awk '$1 != NR {{ print NR, $1; exit }}' {AT}/w{writer}") == ""
            assert run(sandbox, f"tail -n 1 {AT}/w{writer}") == run(sandbox, f"cat /tmp/w{writer}")
        sandbox.kill()
        e2b.Volume.destroy(volume.volume_id, **{k: v for k, v in server.client.items() if k != "sandbox_url"})
        server.leave()
    finally:
        server.remove()
