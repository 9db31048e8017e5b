"""The dashboard in a real browser: Debian's Chromium, headless, with a page that has signed in and complains of what browsers complain of.

`CHROMIUM` names the program, `SCREENSHOTS` the directory in which each page is left as it was seen.
"""

import os

import pytest
from browser_page import Dashboard
from playwright.sync_api import sync_playwright
from support import SANDBOX_LIFETIME_S


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        # As root, Chromium's own sandbox does not start; what it shows here is our own.
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def dashboard(chromium, api):
    dashboard = Dashboard(chromium, api.url)
    dashboard.enter(api.key)
    yield dashboard
    dashboard.close()


@pytest.fixture
def plain(chromium, api):
    """The same without JavaScript."""
    dashboard = Dashboard(chromium, api.url, java_script_enabled=False)
    dashboard.enter(api.key)
    yield dashboard
    dashboard.close()


@pytest.fixture
def made(api):
    """Creates sandboxes by the API, which end with the test: `made(metadata=...)` gives an id."""
    ids: list[str] = []

    def create(template: str = "base", **fields) -> str:
        response = api.http.post("/v2/sandboxes", json={"templateID": template, "timeout": SANDBOX_LIFETIME_S} | fields)
        assert response.status_code == 201, response.text
        ids.append(response.json()["sandboxID"])
        return ids[-1]

    create.ids = ids
    yield create
    for sandbox_id in ids:
        api.kill(sandbox_id)
