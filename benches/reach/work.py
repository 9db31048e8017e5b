"""What an agent's code does, timed where it runs: by one script that is the same on the host, in gVisor and in an emulated machine.

The host runs it in a chroot of the very root image that the sandboxes have, so that compiler, interpreter and libraries are the same files.
"""

import base64
import json
import pathlib
import subprocess
import tempfile

from .host import mounted, say

# The name of each, its bar against the host, and that against emulation (as many times faster).
KINDS = {
    "python loop": (1.3, 4), "`import numpy, pandas`": (3, 4), "`gcc -O2` of 20 functions": (3, 4), "`npm --version`": (3.5, 4),
    "matrix product": (2, 4),
}  # fmt: skip

# Each round is one sample of each kind. What is read from the disk once is read before the clock starts.
PROGRAM = r"""
import json, subprocess, sys, time
import numpy
source = "\n".join(f"int f{n}(int a) {{ int s = 0; for (int i = 0; i < a; i++) s += i * {n} ^ a; return s; }}" for n in range(20))
open("/tmp/reach.c", "w").write(source)
factors = numpy.random.default_rng(1).random((300, 300)), numpy.random.default_rng(2).random((300, 300))
def loop():
    s = 0
    for i in range(1000000):
        s += i * i
def run(*words):
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
def product():
    for _ in range(5):
        factors[0] @ factors[1]
kinds = [loop, lambda: run("python3", "-c", "import numpy, pandas"), lambda: run("gcc", "-O2", "-c", "/tmp/reach.c", "-o", "/tmp/reach.o"),
         lambda: run("npm", "--version"), product]
def took(kind):
    begun = time.perf_counter()
    kind()
    return (time.perf_counter() - begun) * 1000
if sys.argv[1] == "warm":
    for kind in kinds:
        kind()
print(json.dumps([took(kind) for kind in kinds]), flush=True)
"""


def on_the_host(tree, warm):
    """One round in the image that is mounted at `tree`. Only its `/tmp` is written."""
    words = ["chroot", str(tree), "/usr/bin/env", "-i", "HOME=/tmp", "PATH=/usr/local/bin:/usr/bin:/bin", "python3", "-", warm]
    done = subprocess.run(words, input=PROGRAM, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the work failed on the host: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def in_a_sandbox(sandbox, warm):
    """The same as the sandbox's user."""
    coded = base64.b64encode(PROGRAM.encode()).decode()
    return json.loads(sandbox.run(f"cd /tmp && echo {coded} | base64 -d >reach.py && HOME=/tmp python3 reach.py {warm}"))


def rounds(tree, gvisor, emulated, samples):
    """Rows of all kinds, by samples that are taken in turns."""
    places = {
        "host": lambda warm: on_the_host(tree, warm),
        "gvisor": lambda warm: in_a_sandbox(gvisor, warm),
        "emulated": lambda warm: in_a_sandbox(emulated, warm),
    }
    taken = {place: [] for place in places}
    for n in range(samples):
        for place, take in places.items():
            say(f"work: {n + 1} of {samples}, {place}")
            taken[place].append(take("cold" if n else "warm"))
    return {place: list(zip(*rows)) for place, rows in taken.items()}


def image_with(cache_dir, *patterns):
    """The newest root image that has a file of one of these patterns, as the mounting of each tells."""
    images = sorted(pathlib.Path(cache_dir).glob("rootfs-v*/*/rootfs.ext4"), key=lambda image: image.stat().st_mtime, reverse=True)
    for image in images:
        with tempfile.TemporaryDirectory() as scratch, mounted(image, pathlib.Path(scratch) / "image") as tree:
            if any(True for pattern in patterns for _ in tree.glob(pattern)):
                return image
    raise SystemExit(f"no root image in {cache_dir} has {patterns[0]}")
