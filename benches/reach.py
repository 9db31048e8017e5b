#!/usr/bin/env python3
"""How far the product reaches against what others do with the same guest on the same host: the Reach table, in one command.

    python3 benches/reach.py [--firkin PROGRAM] [--samples 20] [--cycles 2000] [--only first,restore,...] [--json FILE]
    python3 benches/reach.py --engine gvisor --samples 10 ...      the table of gVisor: beside containers, the host, and emulation

Everything in a row is measured in one run, in turns, and medians count. As root, on Debian 12: `runsc`, `runc` and `qemu-utils`
are installed from Debian where they are missing. The server, its state, the comparison's machines and mounts are the run's own
and end with it. Markdown goes to standard output, the figures with their spread to the file of `--json`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from reach import containers, gvisor, host, measure, plainvm
from reach.firkin import Server, engine_of_machines

PARTS = ("first", "restore", "freeze", "burst", "density", "soak")
WARM_DEPTH = 2


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--firkin", type=pathlib.Path, help="the program; built from this project if absent")
    parser.add_argument("--samples", type=int, default=20, help="samples of each kind [20]")
    parser.add_argument("--burst", type=int, default=20, help="sandboxes created at once [20]")
    parser.add_argument("--clones", type=int, default=8, help="idle clones [8]")
    parser.add_argument("--cycles", type=int, default=2000, help="cycles of the soak [2000]")
    parser.add_argument("--engine", choices=("machines", "gvisor"), default="machines", help="whose table [machines: KVM, or emulated]")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}; of gVisor's, {','.join(gvisor.PARTS)}")
    parser.add_argument("--cache-dir", type=pathlib.Path, default=pathlib.Path(os.environ.get("FIRKIN_CACHE_DIR", "/var/cache/firkin")))
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("/var/tmp"), help="where everything temporary goes [/var/tmp]")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    options = parser.parse_args()
    parts = gvisor.PARTS if options.engine == "gvisor" else PARTS
    options.only = options.only.split(",") if options.only else parts
    if unknown := set(options.only) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


def built():
    """The program of this project, built if need be."""
    root = pathlib.Path(__file__).resolve().parent.parent
    host.say("building the program: cargo build --release")
    subprocess.run(["cargo", "build", "--release"], cwd=root, check=True)
    return root / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "firkin"


def measured(options, scratch, stack):
    """Every row that was asked for."""
    only, rows = options.only, []
    engine = ("--engine", engine_of_machines(options.firkin))
    cold = Server(options.firkin, scratch / "cold", warm=0, options=engine)
    stack.callback(cold.stop)
    cache, kvm = plainvm.cached(options.cache_dir), "kvm" in cold.acceleration and "tcg" not in cold.acceleration
    # The first of everything reads what the rest finds in the page cache.
    measure.create_to_first_stdout(cold)
    plain = None
    if {"restore", "freeze"} & set(only):
        plain = plainvm.PlainVm(scratch, cache, kvm)
        stack.callback(plain.kill)
    if "first" in only:
        rootfs = stack.enter_context(host.mounted(cache["rootfs"], scratch / "rootfs"))
        runsc, runc = containers.GVisor(scratch, rootfs), containers.Runc(scratch, rootfs)
        warm = None
        if cold.has_pool():
            warm = Server(options.firkin, scratch / "warm", warm=WARM_DEPTH, options=engine)
            stack.callback(warm.stop)
        rows += measure.first_outputs(cold, warm, WARM_DEPTH, runsc, runc, options.samples)
        if warm is not None:
            warm.stop()
        containers.settled()
    if "restore" in only:
        rows += measure.restores(cold, plain, options.samples)
    if "freeze" in only:
        rows += measure.freezes(cold, plain, options.samples)
    if "burst" in only:
        rows += measure.bursts(cold, options.burst, max(1, options.samples // 5))
    if "density" in only:
        rows += measure.density(cold, options.clones)
    if "soak" in only:
        rows += measure.soak(cold, options.cycles)
    return cold.acceleration, rows


def markdown(report):
    """The table, as the README has it."""
    machine = report["host"]
    lines = [
        f"{machine['cpus']} x {machine['cpu']}, {machine['memory_mib']} MiB, Linux {machine['kernel']}, acceleration {report['acceleration']}, "
        f"{report['firkin']}; load {machine['load']:.1f} at the start",
        "",
        "| what | against | ours | theirs | ratio | bar | met | samples | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    number = lambda value: "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"
    for row in report["rows"]:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        bar = row["bar"] if isinstance(row["bar"], str) else f"{row['bar']}x"
        lines.append(
            f"| {row['what']}, {row['unit']} | {row['against']} | {number(row['ours'])} | {number(row['theirs'])} | {ratio} | {bar} "
            f"| {'yes' if row['met'] else 'no'} | {row['samples'][0]} / {row['samples'][1]} | {row['note']} |"
        )
    return "\n".join(lines)


def main():
    options = parsed()
    if os.geteuid() != 0:
        sys.exit("this needs root: it mounts, makes network namespaces and may install packages")
    host.own_mount_namespace()
    # Whatever ends the run, what it made is taken apart.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for program, package in (("runsc", "runsc"), ("runc", "runc")) if "first" in options.only else ():
        host.need(program, package)
    if options.engine == "gvisor":
        host.need("mkfs.erofs", "erofs-utils")
    else:
        host.need("qemu-img", "qemu-utils")
    options.firkin = (options.firkin or built()).resolve()
    machine = host.hardware()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="firkin-reach-", dir=options.scratch) as scratch, contextlib.ExitStack() as stack:
        # Machines run as other users and pass through.
        os.chmod(scratch, 0o711)
        table = gvisor.measured if options.engine == "gvisor" else measured
        acceleration, rows = table(options, pathlib.Path(scratch), stack)
    version = host.run(options.firkin, "--version").stdout.strip()
    report = {"firkin": version, "acceleration": acceleration, "host": machine, "seconds": time.monotonic() - begun, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    print(markdown(report))


if __name__ == "__main__":
    main()
