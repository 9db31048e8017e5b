"""What the documentation has people type is typed: each block of `sh` and `python` of every page, in order, in a directory of the page's own.

A block that cannot be run here says why: the line before it is `<!-- not run: why -->`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {"sh", "python"}
# These show what something looks like.
SHOWN = {"text", "toml", "ini", "json", "yaml"}
BLOCK_S = 120


def blocks(page: Path):
    return [(found["language"], found["text"], found["why"]) for found in BLOCK.finditer(page.read_text())]


def typed(page: Path):
    return [(language, text) for language, text, why in blocks(page) if language in RUN and why is None]


PAGES = [page for page in sorted(DOCS.glob("*.md")) if typed(page)]


def test_each_block_is_run_or_says_why_not():
    unclear = []
    for page in sorted(DOCS.glob("*.md")):
        fences = len(re.findall(r"^```", page.read_text(), re.MULTILINE))
        assert fences == 2 * len(blocks(page)), f"{page.name}: a block does not end, or is indented"
        unclear += [f"{page.name}: {language!r}: {text[:60]}" for language, text, _ in blocks(page) if language not in RUN | SHOWN]
    assert not unclear, f"blocks of no known language: {unclear}"
    assert DOCS / "tutorial.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_has_people_type_works(page, tmp_path, api):
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program")
    before = {sandbox["sandboxID"] for sandbox in api.listed()}
    environment = {**os.environ, "PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
    # A person's shell begins without what the book has them set.
    bare = {name: value for name, value in environment.items() if not name.startswith("E2B_")}
    for language, text in typed(page):
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        first = bare if 'eval "$(firkin env)"' in text else environment
        ran = subprocess.run(command, cwd=tmp_path, env=first, capture_output=True, text=True, timeout=BLOCK_S, check=False)
        assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
    left = {sandbox["sandboxID"] for sandbox in api.listed()} - before
    assert not left, "a page has people leave sandboxes behind"
