"""What an operator looks at: the host, templates and their builds, lineage, keys and teams, settings."""

import os
import pathlib
import re

from browser_page import Dashboard
from playwright.sync_api import expect
from support import WAIT_S


def test_the_host_says_what_runs_and_what_was_refused(dashboard, api, made):
    made()
    assert api.http.post("/v2/sandboxes", json={"templateID": "base", "timeout": -1}).status_code == 400
    page = dashboard.page
    page.goto("/ui/host")
    main = page.get_by_role("main")
    # Where the tests run may be short of room; the page follows what the host says.
    held = [one for one in api.http.get("/host").json()["conditions"] if one["holds"]]
    expect(main.get_by_role("alert")).to_have_count(len(held))
    if not held:
        expect(main).to_contain_text("Nothing keeps this host from new work")
    expect(main).to_contain_text("warm_snapshot_restore")
    expect(main).to_contain_text("bad_request")
    expect(main).to_contain_text("What a look at this host found")
    dashboard.is_well("host")
    page.goto("/ui/settings")
    expect(main).to_contain_text("State directory")
    assert api.key not in page.content()
    dashboard.is_well("settings")


def test_a_template_is_built_from_what_is_typed(dashboard, api, made):
    page = dashboard.page
    page.goto("/ui/templates")
    page.get_by_text("Build a template").click()
    page.get_by_label("Name", exact=True).fill("typed-in")
    # As large as what it stands on, so that it is restored and not booted.
    page.get_by_label("CPUs").fill("1")
    page.get_by_label("Dockerfile").fill("FROM base\nUSER root\nRUN echo built-here | tee /etc/typed\n")
    page.get_by_role("button", name="Build").click()
    page.wait_for_url(re.compile("/builds/"))
    main = page.get_by_role("main")
    try:
        expect(main.locator(".state.ready")).to_be_visible(timeout=WAIT_S * 2000)
        expect(main).to_contain_text("built-here")
        dashboard.is_well("build")
        page.goto("/ui/templates")
        expect(page.get_by_role("link", name="typed-in")).to_be_visible()
        dashboard.is_well("templates")
        sandbox = made("typed-in")
        page.get_by_role("link", name="typed-in").click()
        expect(main).to_contain_text("Builds")
        dashboard.is_well("template")
        page.goto(f"/ui/sandboxes/{sandbox}")
        page.get_by_role("button", name="Snapshot").click()
        expect(page.get_by_role("status")).to_contain_text("was taken")
        page.goto("/ui/lineage")
        expect(main).to_contain_text(sandbox)
        dashboard.is_well("lineage")
    finally:
        for sandbox in made.ids:
            api.kill(sandbox)
        for snapshot in api.http.get("/snapshots").json():
            api.delete_snapshot(snapshot["snapshotID"])
        api.delete_snapshot("typed-in")


def test_what_cannot_be_built_is_refused_by_its_line(dashboard):
    page = dashboard.page
    page.goto("/ui/templates")
    page.get_by_text("Build a template").click()
    page.get_by_label("Name", exact=True).fill("never")
    page.get_by_label("Dockerfile").fill("FROM base\nCOPY . /app\n")
    page.get_by_role("button", name="Build").click()
    expect(page.get_by_role("alert")).to_contain_text("line 2: `COPY` needs files")
    dashboard.is_well("refused")


def test_keys_are_made_and_revoked_by_who_has_the_admin_token(dashboard, chromium, api):
    token = pathlib.Path(os.environ["FIRKIN_STATE_DIR"], "admin-token").read_text().strip()
    page = dashboard.page
    page.goto("/ui/teams")
    dashboard.is_well("teams-locked")
    page.get_by_label("Admin token").fill("wrong")
    page.get_by_role("button", name="Administer").click()
    expect(page.get_by_role("alert")).to_contain_text("not the admin token")
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Administer").click()
    page.get_by_label("Key's name").fill("from-a-page")
    page.get_by_label("Scope").select_option("read")
    page.get_by_role("button", name="Make key").click()
    told = page.get_by_role("status")
    expect(told).to_contain_text("shown this once")
    key = told.locator("code").last.inner_text()
    identity = told.locator("code").first.inner_text()
    dashboard.is_well("teams")
    other = Dashboard(chromium, api.url)
    other.enter(key)
    expect(other.page.get_by_role("button", name="Create")).to_have_count(0)
    page.get_by_role("button", name=f"Revoke {identity}").click()
    expect(page.get_by_role("status")).to_contain_text("opens nothing any more")
    other.page.reload()
    expect(other.page.get_by_label("API key")).to_be_visible()
    other.close()
