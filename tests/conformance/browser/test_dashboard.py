"""What people do in the dashboard, as they do it: by its buttons, links and keys."""

import re

from browser_page import Dashboard
from playwright.sync_api import expect
from support import WAIT_S

MARKUP = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"


def test_who_has_no_key_is_asked_for_one(chromium, api):
    stranger = Dashboard(chromium, api.url)
    stranger.page.goto("/ui/sandboxes")
    assert "/ui/sign-in" in stranger.page.url
    stranger.is_well("sign-in")
    stranger.page.get_by_label("API key").fill("e2b_" + "0" * 40)
    stranger.page.get_by_role("button", name="Sign in").click()
    expect(stranger.page.get_by_role("alert")).to_contain_text("not valid")
    stranger.close()


def test_a_sandbox_is_made_and_used_by_buttons(dashboard, api, made):
    page = dashboard.page
    page.get_by_text("New sandbox").click()
    page.get_by_label("Metadata").first.fill("made=by-hand")
    page.get_by_role("button", name="Create").click()
    page.wait_for_url(re.compile("/ui/sandboxes/i[a-z0-9]+$"))
    sandbox = page.url.rsplit("/", 1)[1]
    made.ids.append(sandbox)
    main = page.get_by_role("main")
    expect(main).to_contain_text("by-hand")
    dashboard.is_well("sandbox")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("Paused.")
    assert api.http.get(f"/sandboxes/{sandbox}").json()["state"] == "paused"
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_contain_text("Resumed.")
    page.get_by_label("Minutes from now").fill("90")
    page.get_by_role("button", name="Set deadline").click()
    expect(page.get_by_role("status")).to_contain_text("90 minutes")
    page.get_by_role("button", name="Fork").click()
    expect(page.get_by_role("status")).to_contain_text(f"a fork of {sandbox}")
    child = page.url.rsplit("/", 1)[1]
    made.ids.append(child)
    page.goto(f"/ui/sandboxes/{sandbox}/processes")
    expect(main).to_contain_text("49983")
    dashboard.is_well("processes")
    page.goto(f"/ui/sandboxes/{sandbox}/network")
    expect(main).to_contain_text("It reaches the internet")
    dashboard.is_well("network")
    page.goto(f"/ui/sandboxes/{child}")
    page.get_by_role("button", name="Kill").click()
    page.wait_for_url(re.compile("/ui/sandboxes$"))
    expect(page.get_by_role("status")).to_contain_text(f"{child} has ended")
    assert api.http.get(f"/sandboxes/{child}").status_code == 404


def test_the_list_follows_what_others_do(dashboard, api, made):
    page = dashboard.page
    first = made(metadata={"job": "one", MARKUP: MARKUP})
    row = page.get_by_role("row").filter(has_text=first)
    expect(row).to_contain_text("running")
    dashboard.is_well("sandboxes")
    assert api.http.post(f"/sandboxes/{first}/pause", json={}).status_code == 204
    expect(row).to_contain_text("paused")
    second = made(metadata={"job": "two"})
    expect(page.get_by_role("row").filter(has_text=second)).to_be_visible()
    page.get_by_role("searchbox").fill("job=two")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("row").filter(has_text=second)).to_be_visible()
    expect(row).to_have_count(0)
    page.get_by_label(f"Select {second}").check()
    page.get_by_role("button", name="Kill").click()
    expect(page.get_by_role("status")).to_contain_text("1 of 1 sandboxes ended")
    page.goto("/ui/sandboxes")
    api.kill(first)
    expect(row).to_have_count(0)
    assert page.title() != "broken in" and not dashboard.complaints


def test_the_keyboard_alone_will_do(dashboard, made):
    sandbox = made()
    page = dashboard.page
    page.reload()
    expect(page.get_by_role("link", name=sandbox)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == sandbox:
            break
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"/ui/sandboxes/{sandbox}$"))


def test_without_scripts_pages_are_whole_and_buttons_work(plain, api, made):
    sandbox = made(metadata={"job": "plain"})
    page = plain.page
    page.goto("/ui/sandboxes?q=job%3Dplain")
    page.get_by_role("link", name=sandbox).click()
    expect(page.get_by_role("main")).to_contain_text("plain")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("Paused.")
    page.get_by_role("button", name="Pause").or_(page.get_by_role("button", name="Resume")).click()
    page.get_by_role("button", name="Kill").click()
    page.wait_for_url(re.compile("/ui/sandboxes$"), timeout=WAIT_S * 1000)
    assert api.http.get(f"/sandboxes/{sandbox}").status_code == 404
