"""One browser's look at the dashboard, and what makes a page a good one: nobody is kept out, nothing breaks the frame, the browser has no
complaint."""

import os
import pathlib
import re

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from support import WAIT_S

# Of its own, and not that of a context: without a word it is five seconds, in which a busy host pauses no sandbox.
expect.set_options(timeout=WAIT_S * 1000)

SCREENSHOTS = pathlib.Path(os.environ.get("SCREENSHOTS", "/var/tmp/firkin-screenshots"))
"""Where each page is left as it was seen."""

WIDTHS = {"phone": (360, 780), "wide": (1400, 900), "huge": (2560, 1300)}


class Dashboard:
    """One browser's look at the server."""

    def __init__(self, chromium, url: str, **options) -> None:
        self.url = url
        self.context = chromium.new_context(viewport={"width": 1400, "height": 900}, base_url=url, **options)
        self.context.set_default_timeout(WAIT_S * 1000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("console", self._heard)
        self.page.on("dialog", lambda dialog: dialog.accept())

    def _heard(self, message) -> None:
        if message.type == "error" and "the server responded with a status" not in message.text:
            self.complaints.append(message.text)

    def enter(self, key: str) -> None:
        self.page.goto("/")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(re.compile("/ui/sandboxes"))

    def is_well(self, name: str) -> None:
        """The page as it is: no violation that axe-core finds, nothing wider than the screen, light and dark, small and large."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            results = Axe().run(self.page)
            assert results.violations_count == 0, f"{name}, {scheme}: {results.generate_report()}"
        for width, (w, h) in WIDTHS.items():
            self.page.set_viewport_size({"width": w, "height": h})
            over = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, f"{name} is {over} pixels wider than a screen of {w}"
            self.page.screenshot(path=SCREENSHOTS / f"{name}-{width}.png")
        self.page.set_viewport_size({"width": 1400, "height": 900})
        self.page.screenshot(path=SCREENSHOTS / f"{name}-dark.png")
        self.page.emulate_media(color_scheme="light")
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
        assert not self.complaints, f"{name}: the browser complains: {self.complaints}"

    def close(self) -> None:
        self.context.close()
