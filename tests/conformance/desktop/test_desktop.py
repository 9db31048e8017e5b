"""What users of E2B's desktop SDK rely on: a desktop that is there when the sandbox is, in the size they asked for, and stays."""

import io

import e2b_desktop
import pytest
from e2b import CommandExitException
from PIL import Image, ImageChops
from support import Brood, wait_for

PATIENCE_S = 300
"""A window of a large program in an emulated guest."""

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


@pytest.fixture(scope="module")
def spawn(api):
    brood = Brood(e2b_desktop.Sandbox, api)
    yield brood
    brood.end()


@pytest.fixture(scope="module")
def sandbox(spawn):
    """One desktop that the tests of this file share."""
    return spawn()


def picture(sandbox):
    return Image.open(io.BytesIO(sandbox.screenshot())).convert("RGB")


def answers(ask):
    """What a command of the SDK says, nothing while it fails."""
    try:
        return ask()
    except CommandExitException:
        return None


def test_the_desktop_of_the_snapshot_is_the_sandboxes(sandbox):
    servers = sandbox.commands.run("pgrep -af '^/usr/bin/Xvfb'").stdout.splitlines()
    assert len(servers) == 1 and "1920x1200x24" in servers[0], servers
    assert len(sandbox.commands.run("pgrep -x xfce4-session").stdout.split()) == 1
    drawn = picture(sandbox)
    assert drawn.size == (1024, 768) and len(drawn.getcolors(1 << 20)) > 50
    assert sandbox.get_screen_size() == (1024, 768)
    assert sandbox.get_cursor_position() == (512, 384)


def test_a_click_opens_a_menu(sandbox):
    before = picture(sandbox)
    sandbox.right_click(500, 400)
    wait_for(lambda: ImageChops.difference(before, picture(sandbox)).crop((500, 400, 600, 500)).getbbox(), "the menu")
    sandbox.press("escape")


def test_typed_text_reaches_a_terminal(sandbox):
    sandbox.launch("xfce4-terminal")
    windows = wait_for(
        lambda: answers(lambda: sandbox.get_application_windows("xfce4-terminal")), "the terminal", PATIENCE_S
    )
    sandbox.commands.run(f"xdotool windowactivate --sync {windows[-1]}")
    sandbox.write("touch /home/user/typed")
    sandbox.press("enter")
    wait_for(lambda: sandbox.files.exists("/home/user/typed"), "the file that was typed")


def test_the_browser_opens_a_window_of_the_process_that_waits(sandbox):
    browser = "pgrep -o -f '^/usr/lib/chromium/chromium'"
    waiting = sandbox.commands.run(browser).stdout
    sandbox.launch("google-chrome", "about:blank")
    # The name of a page: what the browser shows in the panel has its class too.
    titled = "xdotool search --onlyvisible --name 'about:blank.*Chromium'"
    wait_for(lambda: answers(lambda: sandbox.commands.run(titled)), "the browser's window", PATIENCE_S)
    assert sandbox.commands.run(browser).stdout == waiting


def test_the_stream_is_served(sandbox, api):
    sandbox.stream.start()
    with api.through_proxy(sandbox.sandbox_id, 6080) as http:
        for path in ("/vnc.html", "/"):
            assert "noVNC" in http.get(path).text
    sandbox.stream.stop()


def test_a_pause_keeps_the_session(sandbox):
    session = sandbox.commands.run("pgrep -x xfce4-session").stdout
    sandbox.pause()
    sandbox.connect()
    assert sandbox.commands.run("pgrep -x xfce4-session").stdout == session
    assert picture(sandbox).size == (1024, 768)


@pytest.mark.parametrize("size", [(1280, 720), (2560, 1440)])
def test_the_screen_has_the_size_that_was_asked_for(spawn, size):
    sandbox = spawn(resolution=size)
    assert sandbox.get_screen_size() == size
    assert sandbox.get_cursor_position() == (size[0] // 2, size[1] // 2)
    assert picture(sandbox).size == size
    wait_for(lambda: answers(lambda: sandbox.commands.run("pgrep -x xfce4-session").stdout), "the session", PATIENCE_S)
    sandbox.kill()
