"""Makes once, when a template is built, what kernels otherwise make at each start: compiled classes and code, kept on its disk."""

import os
import pathlib
import shutil
import subprocess

import firkin_framed as framed

HERE = pathlib.Path(framed.HERE)


def java() -> None:
    """The kernel as a JAR, and its classes as the virtual machine wants them in memory, which a run of the kernel leaves."""
    kept = pathlib.Path(framed.KEPT)
    classes = kept / "classes"
    classes.mkdir(parents=True, exist_ok=True)
    subprocess.run(["javac", "-nowarn", "-XDignore.symbol.file", "-d", classes, HERE / "Cells.java"], check=True)
    shutil.make_archive(str(kept / "cells"), "zip", classes)
    os.replace(kept / "cells.zip", framed.JAR)
    run = ["java", *framed.JAVA_FLAGS, f"-XX:ArchiveClassesAtExit={framed.ARCHIVE}", "-cp", framed.JAR, "Cells", "0", "1"]
    cell = 'System.out.println("a" + 1); int of(int a) { return a; } of(1)'
    subprocess.run(run, check=True, input=f"run {len(cell)}\n{cell}".encode(), stdout=subprocess.DEVNULL)
    shutil.rmtree(classes)
    # Last: it says that the others are there.
    shutil.copy(HERE / "Cells.java", framed.SOURCE)


def main():
    if shutil.which("javac"):
        java()
    if shutil.which("node"):
        subprocess.run(["node", HERE / "cells.js", "keep-code"], check=True)


main()
