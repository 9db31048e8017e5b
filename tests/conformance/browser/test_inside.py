"""A sandbox from inside, in a page: its terminal and its files."""

import json
import re
import struct
import zlib

import pytest
import websockets.sync.client
from playwright.sync_api import expect
from support import WAIT_S, wait_for

MARKUP = "<img src=x onerror=\"document.title='broken in'\">"


def png(width: int = 8, height: int = 8) -> bytes:
    """A small picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x20\x60\xc0" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_terminal_answers(dashboard, made):
    sandbox = made()
    page = dashboard.page
    page.goto(f"/ui/sandboxes/{sandbox}/terminal")
    rows = page.locator("#rows")
    expect(rows).to_contain_text("$")
    page.keyboard.type("echo $((6*7)) | sed s/4/forty-/\n")
    expect(rows).to_contain_text("forty-2")
    # What a program writes is text, whatever it looks like and whatever it escapes.
    page.keyboard.type(f"printf '%s\\n' \"{MARKUP.replace(chr(34), chr(92) + chr(34))}\"; printf '\\033[1;31mred\\033[0m\\033]0;<b>t</b>\\007\\n'; read line\n")
    expect(rows.locator(".f1.bold")).to_have_text("red")
    expect(rows).to_contain_text("onerror")
    assert page.locator("#rows img, #rows b").count() == 0
    assert page.title() != "broken in"
    expect(page.locator("#title")).to_have_text("<b>t</b>")
    page.keyboard.type("\nstty size\n")
    expect(rows).to_contain_text(re.compile(r"\d\d \d\d"))
    dashboard.is_well("terminal")
    page.keyboard.press("Shift+Escape")
    expect(page.get_by_label("Terminal input")).not_to_be_focused()
    page.get_by_label("Terminal input").focus()
    page.keyboard.press("Control+D")
    expect(rows).to_contain_text("the shell has ended")
    page.keyboard.press("Enter")
    expect(rows).to_contain_text("$")


def test_files_go_up_and_down(dashboard, made, tmp_path):
    sandbox = made()
    page = dashboard.page
    page.goto(f"/ui/sandboxes/{sandbox}/files")
    (tmp_path / "up.txt").write_text("from here\n")
    (tmp_path / "picture.png").write_bytes(png())
    (tmp_path / f"{MARKUP.replace('/', '')}.html").write_text("<script>parent.document.title='broken in'</script>")
    page.get_by_label("Files to upload").set_input_files(sorted(tmp_path.iterdir()))
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("/home/user/up.txt is stored")
    dashboard.is_well("files")
    with page.expect_download() as download:
        page.get_by_role("link", name="up.txt", exact=True).click()
    assert download.value.path().read_text() == "from here\n"
    page.get_by_role("link", name="Edit up.txt").click()
    text = page.get_by_role("textbox", name="Text of")
    expect(text).to_have_value("from here\n")
    text.fill("\n<changed>\n")
    dashboard.is_well("edit")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("is stored")
    page.get_by_role("link", name="Edit up.txt").click()
    expect(page.get_by_role("textbox", name="Text of")).to_have_value("\n<changed>\n")
    page.goto(f"/ui/sandboxes/{sandbox}/files")
    page.get_by_role("link", name=re.compile("^View")).click()
    wait_for(lambda: page.evaluate("document.querySelector('img.preview').naturalWidth") == 8, "the picture to be shown")
    dashboard.is_well("preview")
    page.goto(f"/ui/sandboxes/{sandbox}/files")
    page.get_by_label("Name of the new directory").fill("a b")
    page.get_by_role("button", name="Make").click()
    expect(page.get_by_role("status")).to_contain_text("/home/user/a b was made")
    page.goto(f"/ui/sandboxes/{sandbox}/files")
    page.get_by_role("button", name="Remove a b").click()
    expect(page.get_by_role("status")).to_contain_text("is gone")
    assert page.title() != "broken in"


def test_what_a_sandbox_s_file_holds_is_saved_and_never_shown(dashboard, made):
    sandbox = made()
    page = dashboard.page
    page.goto(f"/ui/sandboxes/{sandbox}/edit?path=/home/user/x.html")
    page.get_by_role("textbox", name="Text of").fill("<script>alert(1)</script>")
    page.get_by_role("button", name="Save").click()
    for what in ("file", "image"):
        answer = page.request.get(f"/ui/sandboxes/{sandbox}/{what}?path=/home/user/x.html")
        if what == "image":
            assert answer.status == 400
            continue
        headers = answer.headers
        assert headers["content-disposition"].startswith("attachment")
        assert headers["content-type"] == "application/octet-stream" and headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in headers["content-security-policy"]


def sockets(dashboard, sandbox: str) -> dict:
    """What opens a terminal of this session without a page."""
    page = dashboard.page
    page.goto(f"/ui/sandboxes/{sandbox}")
    token = page.locator("input[name=token]").first.get_attribute("value")
    cookie = "; ".join(f"{c['name']}={c['value']}" for c in dashboard.context.cookies(dashboard.url + "/ui"))
    url = dashboard.url.replace("http", "ws") + f"/ui/sandboxes/{sandbox}/terminal/socket"
    return {"url": url, "token": token, "cookie": cookie, "processes": f"/ui/sandboxes/{sandbox}/processes"}


def test_a_terminal_is_for_pages_of_this_session_only(dashboard, made):
    way = sockets(dashboard, made())

    def opened(token: str, **headers):
        headers = {name: value for name, value in headers.items() if value}
        with websockets.sync.client.connect(way["url"], additional_headers=headers, open_timeout=WAIT_S) as socket:
            socket.send(json.dumps({"type": "hello", "token": token, "cols": 80, "rows": 24}))
            return json.loads(socket.recv(WAIT_S))

    assert "changed" in opened(way["token"], Cookie=way["cookie"], Origin=dashboard.url)
    assert "another session" in opened("0" * 64, Cookie=way["cookie"], Origin=dashboard.url)["end"]
    for headers in ({"Cookie": way["cookie"], "Origin": "http://evil.example"}, {"Cookie": way["cookie"]}, {"Origin": dashboard.url}):
        try:
            opened(way["token"], **headers)
        except websockets.exceptions.InvalidStatus as refused:
            assert refused.response.status_code in (401, 403)
        else:
            raise AssertionError(f"opened with {headers}")


def test_a_page_that_never_reads_is_hung_up_on(dashboard, api, made):
    """A program writes without end, and nobody takes what is shown of it: the server neither piles it up nor waits for ever."""
    way = sockets(dashboard, made())
    held = 20 << 20

    def resident() -> int:
        return int(re.search(r"^firkin_resident_bytes\{[^}]*\} (\d+)", api.http.get("/metrics").text, re.M)[1])

    def shells() -> int:
        return dashboard.page.request.get(way["processes"]).text().count("/bin/bash -i -l")

    with websockets.sync.client.connect(
        way["url"], additional_headers={"Cookie": way["cookie"], "Origin": dashboard.url}, max_queue=1, close_timeout=1
    ) as socket:
        socket.send(json.dumps({"type": "hello", "token": way["token"], "cols": 300, "rows": 120}))
        socket.recv(WAIT_S)
        wait_for(lambda: shells() == 1, "the shell to be seen")
        before = resident()
        # From here on the client's own thread takes a message or two, and then none.
        socket.send(json.dumps({"type": "keys", "text": "while :; do head -c 100000 /dev/urandom | base64 -w 299; done\n"}))
        wait_for(lambda: shells() == 0, "the server to hang up on the shell")
        assert resident() - before < held


def test_without_an_interpreter_code_is_refused(dashboard, made):
    sandbox = made()
    page = dashboard.page
    page.goto(f"/ui/sandboxes/{sandbox}/code")
    dashboard.is_well("code-empty")
    page.get_by_label("Code", exact=True).fill("1 + 1")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("port is not open")


def test_cells_run_and_their_results_are_kept(dashboard, api, made):
    if not any("code-interpreter-v1" in template["aliases"] for template in api.http.get("/templates").json()):
        pytest.skip("the server has no template code-interpreter-v1")
    sandbox = made("code-interpreter-v1")
    page = dashboard.page
    page.goto(f"/ui/sandboxes/{sandbox}/code")

    def run(code: str) -> None:
        page.get_by_label("Code", exact=True).fill(code)
        page.get_by_role("button", name="Run").click()

    run("x = 6\nprint('<b>wrote</b>')\nx * 7")
    cell = page.get_by_role("region", name="Cell 1")
    expect(cell).to_contain_text("<b>wrote</b>")
    expect(cell).to_contain_text("42")
    run("import matplotlib.pyplot as plt\nplt.plot([1, x, 3])\nplt.show()")
    wait_for(lambda: page.evaluate("document.querySelector('img.preview')?.naturalWidth ?? 0") > 100, "the plot to be shown")
    run("1 / 0")
    expect(page.get_by_role("region", name="Cell 3")).to_contain_text("ZeroDivisionError")
    dashboard.is_well("code")
