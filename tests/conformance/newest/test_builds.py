"""Template builds as the SDK's builder asks for them: steps, files, what is left running, and images of a registry."""

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import uuid

import e2b
import pytest
from e2b import Template, wait_for_port

SHAPE = {"cpu_count": 1, "memory_mb": 512}  # that of `base`, which is then gone on from without a boot


@pytest.fixture
def build(api):
    """Builds a template that goes with the test: `build(template)` gives its name."""
    names = []

    def build(template, **options):
        name = f"test-{uuid.uuid4().hex}"
        names.append(name)
        Template.build(template, name, **{**SHAPE, **options})
        return name

    yield build
    for name in names:
        api.http.delete(f"/templates/{name}")


@pytest.fixture
def run():
    """Runs a command in a new sandbox of a template."""

    def run(name, command, **options):
        sandbox = e2b.Sandbox.create(name, timeout=60)
        try:
            return sandbox.commands.run(command, **options).stdout.strip()
        finally:
            sandbox.kill()

    return run


def test_steps_files_and_a_running_server(build, run, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("built")
    os.symlink("index.html", tmp_path / "site" / "link.html")
    template = (
        Template(file_context_path=tmp_path)
        .from_template("base")
        .set_envs({"WHERE": "/srv/site", "SEARCH": "/opt/bin:$HOME"})
        .set_user("root")
        .set_workdir("/srv")
        .copy("site", "site", mode=0o755)
        .run_cmd('test "$(cat $WHERE/link.html)" = built && test "$SEARCH" = /opt/bin:/home/user')
        .run_cmd("whoami > /tmp/who", user="user")
        .set_workdir("site")
        .set_start_cmd("exec python3 -m http.server 8123", wait_for_port(8123))
    )
    name = build(template)
    seen = run(name, "curl -s localhost:8123; echo; whoami; pwd; echo $WHERE; stat -c %a index.html; cat /tmp/who; readlink link.html")
    assert seen.split() == ["built", "root", "/srv/site", "/srv/site", "755", "user", "index.html"]


def test_a_failing_step_is_named_and_traced_to_the_caller(build):
    template = Template().from_template("base").run_cmd("true")
    template = template.run_cmd("whoami", user="root123")
    with pytest.raises(e2b.BuildException) as refused:
        build(template)
    words = "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'"
    assert words in str(refused.value)


def test_what_is_known_is_not_built_again(build, run):
    marker = uuid.uuid4().hex
    template = Template().from_template("base").run_cmd(f"echo {marker} $RANDOM$RANDOM$RANDOM > /home/user/made")
    once, again = build(template), build(template)
    assert run(once, "cat made") == run(again, "cat made")
    assert run(build(template, skip_cache=True), "cat made") != run(once, "cat made")


def archive(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members:
            if isinstance(content, str):
                tar.add(content, arcname=name, recursive=False)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


# The server under test was told of both: `firkin up --registry-mirror 127.83.12.1:5000=127.83.12.1:5000` and the like with 5001. The second is
# for a suite that runs at the same time.
REGISTRY, REGISTRY_PORTS = "127.83.12.1", (5000, 5001)


class Registry:
    """A registry on the loopback that serves the images it is given."""

    def __init__(self):
        self.answers = {}
        answers = self.answers

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                kind, body = answers.get(self.path, (None, b"{}"))
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind or "application/json")
                self.send_header("Docker-Content-Digest", digest(body))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = self.listen(Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def listen(handler):
        for port in REGISTRY_PORTS:
            try:
                return http.server.ThreadingHTTPServer((REGISTRY, port), handler)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise RuntimeError("two suites at the same time have registries, there is no port for a third")

    def push(self, name, layers):
        """Gives the reference of an image with these layers."""
        plain = [archive(members) for members in layers]
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["FROM_IMAGE=yes"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in plain]},
            }
        ).encode()
        parts = [gzip.compress(layer, 1) for layer in plain]
        for part in [config, *parts]:
            self.answers[f"/v2/{name}/blobs/{digest(part)}"] = ("application/octet-stream", part)
        oci = "application/vnd.oci.image"
        described = [
            {"mediaType": f"{oci}.layer.v1.tar+gzip", "size": len(part), "digest": digest(part)} for part in parts
        ]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{oci}.manifest.v1+json",
                "config": {"mediaType": f"{oci}.config.v1+json", "size": len(config), "digest": digest(config)},
                "layers": described,
            }
        ).encode()
        for reference in ["latest", digest(manifest)]:
            self.answers[f"/v2/{name}/manifests/{reference}"] = (f"{oci}.manifest.v1+json", manifest)
        self.answers["/v2/"] = ("application/json", b"{}")
        return f"{REGISTRY}:{self.server.server_port}/{name}:latest"


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    yield registry
    registry.server.shutdown()


def programs(*names):
    """These programs of the host with the libraries that they need, as members of a layer."""
    wanted = {}
    for name in names:
        path = os.path.realpath(shutil.which(name))
        wanted[f"usr/bin/{name}"] = path
        for line in subprocess.run(["ldd", path], capture_output=True, text=True).stdout.splitlines():
            for word in line.split():
                if word.startswith("/"):
                    wanted[word.lstrip("/")] = os.path.realpath(word)
    return sorted(wanted.items())


PASSWD = b"root:x:0:0:root:/root:/bin/bash\n"


def test_an_image_of_a_registry_becomes_a_template(build, run, registry):
    tools = programs("bash", "cat", "chmod", "chown", "cp", "mkdir", "tar")
    tools += [("bin/bash", os.path.realpath(shutil.which("bash")))]
    lower = [("etc/passwd", PASSWD), ("etc/gone", b"gone"), ("etc/kept", b"lower"), *tools]
    upper = [("etc/.wh.gone", b""), ("etc/kept", b"upper")]
    image = registry.push("small", [lower, upper])
    template = Template().from_image(image).run_cmd("mkdir -p made/by/a/step").run_cmd("test ! -e /etc/gone")
    name = build(template, memory_mb=256)
    assert run(name, 'cat /etc/kept; echo; echo $FROM_IMAGE; cd made/by/a/step && pwd') == (
        "upper\nyes\n/home/user/made/by/a/step"
    )


@pytest.mark.parametrize("path", ["../../outside", "a/../../../outside"])
def test_a_hostile_image_is_refused(build, registry, path):
    image = registry.push(f"hostile-{uuid.uuid4().hex}", [[("etc/passwd", PASSWD), (path, b"x")]])
    with pytest.raises(e2b.BuildException) as refused:
        build(Template().from_image(image))
    assert "cannot get image" in str(refused.value) and "layer 1" in str(refused.value)


def test_an_image_without_a_shell_is_told_what_it_lacks(build, registry):
    image = registry.push("empty", [[("etc/passwd", PASSWD), ("empty", b"")]])
    with pytest.raises(e2b.BuildException) as refused:
        build(Template().from_image(image), memory_mb=256)
    assert "bash" in str(refused.value)
