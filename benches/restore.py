"""What users feel, measured through the unmodified SDK against a running server.

    python benches/restore.py --state-dir DIR [--creates 100] [--forks 20] [--json]

Needs the environment that `firkin env` prints. Prints one table: milliseconds unless said otherwise, each with its number of
samples. The acceleration stands in the first line, because it decides what the figures mean.
"""

import argparse
import json
import os
import pathlib
import sqlite3
import statistics
import time

from e2b import Sandbox


def milliseconds(since):
    return (time.perf_counter() - since) * 1000


def percentile(samples, part):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def first_stdout(sandbox, since):
    """Milliseconds from `since` until the first byte of a command's output has arrived."""
    arrived = []
    sandbox.commands.run("echo ready", on_stdout=lambda _: arrived.append(milliseconds(since)))
    return arrived[0]


def engine_of(state_dir, sandbox_id):
    """Process id of the machine that runs a sandbox: the one whose command line names its directory."""
    with sqlite3.connect(f"file:{state_dir}/firkin.db?mode=ro", uri=True) as store:
        (record,) = store.execute("SELECT body FROM sandboxes WHERE id = ?", [sandbox_id]).fetchone()
    directory = os.fsencode(pathlib.Path(state_dir) / "run" / json.loads(record)["phase"]["instance"])
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if directory in line:
                return int(process.name)
    raise SystemExit(f"no machine of sandbox {sandbox_id} below {state_dir}")


def proportional_set_size_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} reports no proportional set size")


def allocated_mib(path):
    return sum(f.stat().st_blocks * 512 for f in path.rglob("*") if f.is_file()) / 2**20


def creates(count):
    created, answered = [], []
    for _ in range(count):
        begun = time.perf_counter()
        sandbox = Sandbox.create(timeout=300)
        created.append(milliseconds(begun))
        try:
            answered.append(first_stdout(sandbox, begun))
        finally:
            sandbox.kill()
    return {"create": created, "create to first stdout": answered}


def pauses(count):
    paused, resumed, answered = [], [], []
    sandbox = Sandbox.create(timeout=600)
    try:
        sandbox.commands.run("echo warm")
        for _ in range(count):
            begun = time.perf_counter()
            sandbox.pause()
            paused.append(milliseconds(begun))
            begun = time.perf_counter()
            sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
            resumed.append(milliseconds(begun))
            answered.append(first_stdout(sandbox, begun))
    finally:
        sandbox.kill()
    return {"pause": paused, "resume": resumed, "resume to first stdout": answered}


def forks(count):
    elapsed = []
    sandbox = Sandbox.create(timeout=600)
    try:
        sandbox.commands.run("echo warm")
        for _ in range(count):
            begun = time.perf_counter()
            children = sandbox.fork(count=1, timeout=300)
            elapsed.append(milliseconds(begun))
            for child in children:
                getattr(child, "sandbox", child).kill()
    finally:
        sandbox.kill()
    return {"fork": elapsed}


def idle_clones(state_dir, count=8):
    sandboxes = [Sandbox.create(timeout=600) for _ in range(count)]
    try:
        return {"idle clone, PSS, MiB": [proportional_set_size_mib(engine_of(state_dir, s.sandbox_id)) for s in sandboxes]}
    finally:
        for sandbox in sandboxes:
            sandbox.kill()


def snapshot_sizes(state_dir):
    artifacts = pathlib.Path(state_dir) / "artifacts"
    sandbox = Sandbox.create(timeout=600)
    before = {path.name for path in artifacts.iterdir()}
    try:
        sandbox.commands.run("python3 -c pass")
        sandbox.pause()
        new = [path for path in artifacts.iterdir() if path.name not in before and not path.name.startswith(".")]
        return {"snapshot of one python run, MiB": [allocated_mib(path) for path in new]}
    finally:
        sandbox.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--creates", type=int, default=100)
    parser.add_argument("--forks", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    server = json.loads((pathlib.Path(options.state_dir) / "server.json").read_text())
    samples = creates(options.creates)
    samples |= pauses(options.forks)
    samples |= forks(options.forks)
    samples |= idle_clones(options.state_dir)
    samples |= snapshot_sizes(options.state_dir)
    rows = {
        name: {"samples": len(v), "p50": statistics.median(v), "p95": percentile(v, 0.95), "max": max(v)}
        for name, v in samples.items()
    }
    acceleration = server.get("acceleration", "unknown")
    if options.json:
        print(json.dumps({"acceleration": acceleration, "cpus": os.cpu_count(), "rows": rows}, indent=2))
        return
    print(f"acceleration {acceleration}, {os.cpu_count()} CPUs\n")
    print(f"{'':34}{'samples':>8}{'p50':>9}{'p95':>9}{'max':>9}")
    for name, row in rows.items():
        print(f"{name:34}{row['samples']:>8}{row['p50']:>9.1f}{row['p95']:>9.1f}{row['max']:>9.1f}")


if __name__ == "__main__":
    main()
