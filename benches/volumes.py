#!/usr/bin/env python3
"""What a volume costs against a sandbox's own disk: many small files, one large one, and several sandboxes at once.

    python3 benches/volumes.py [--files 10000] [--large-mib 1024] [--sharers 20] [--rounds 3] [--json FILE]

Needs a running server and `eval "$(firkin env)"`, and E2B's Python SDK. Each figure is the median of the rounds, in seconds of the sandbox's
own clock. Sandboxes and volume are the run's own and end with it. Markdown goes to standard output.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import uuid

import e2b

SMALL = """
import os, sys, time
at, files = sys.argv[1], int(sys.argv[2])
os.makedirs(at)
def timed(name, work):
    begun = time.monotonic(); work(); print(name, time.monotonic() - begun)
def write():
    for n in range(files):
        if n % 100 == 0: os.mkdir(f"{at}/{n // 100}")
        with open(f"{at}/{n // 100}/{n % 100}", "w") as file: file.write("x" * 1000)
def each(work):
    for n in range(files): work(f"{at}/{n // 100}/{n % 100}")
def read(path):
    with open(path) as file: assert len(file.read()) == 1000
timed("write", write)
timed("list with attributes", lambda: [entry.stat() for n in range(files // 100) for entry in os.scandir(f"{at}/{n}")])
timed("read", lambda: each(read))
timed("remove", lambda: each(os.unlink))
"""

LARGE = """
import os, sys, time
at, mib = sys.argv[1], int(sys.argv[2])
block = os.urandom(1 << 20)
begun = time.monotonic()
with open(at, "wb") as file:
    for _ in range(mib): file.write(block)
    os.fsync(file.fileno())
print("write and fsync", time.monotonic() - begun)
with open(at) as file: os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
begun = time.monotonic()
with open(at, "rb") as file:
    while file.read(1 << 20): pass
print("read", time.monotonic() - begun)
os.unlink(at)
"""


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="small files, 1,000 bytes each [10000]")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the large file [1024]")
    parser.add_argument("--sharers", type=int, default=20, help="sandboxes that write at once [20]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each [3]")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    return parser.parse_args()


def run(sandbox, program: str, at: str, size: int) -> dict[str, float]:
    sandbox.files.write("/tmp/bench.py", program)
    lines = sandbox.commands.run(f"python3 /tmp/bench.py {at} {size} && rm -rf {at}", timeout=0).stdout.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def main() -> None:
    options = parsed()
    volume = e2b.Volume.create(f"bench-{uuid.uuid4().hex[:12]}")
    sandboxes, figures = [], {}

    def create():
        sandboxes.append(e2b.Sandbox.create(timeout=7200, volume_mounts={"/mnt/bench": volume.name}))
        return sandboxes[-1]

    try:
        one = create()
        for what, program, size in (("small files", SMALL, options.files), ("large file", LARGE, options.large_mib)):
            for place, directory in (("own disk", "/home/user"), ("volume", "/mnt/bench")):
                rounds = [run(one, program, f"{directory}/bench-{n}", size) for n in range(options.rounds)]
                figures[f"{what}, {place}"] = medians(rounds)
        sharers = [one] + [create() for _ in range(options.sharers - 1)]
        share = options.files // options.sharers // 100 * 100 or 100
        with concurrent.futures.ThreadPoolExecutor(len(sharers)) as pool:
            done = list(pool.map(lambda pair: run(pair[1], SMALL, f"/mnt/bench/{pair[0]}", share), enumerate(sharers)))
        figures[f"{share} small files each, {len(sharers)} at once, the slowest"] = {name: max(each[name] for each in done) for name in done[0]}
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
        e2b.Volume.destroy(volume.volume_id)
    print("| what | " + " | ".join(["step", "seconds"]) + " |\n|---|---|---|")
    for what, steps in figures.items():
        for step, seconds in steps.items():
            print(f"| {what} | {step} | {seconds:.2f} |")
    print(f"\nload of the host at the end: {os.getloadavg()[0]:.1f}, processors: {os.cpu_count()}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
