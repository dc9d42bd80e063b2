"""The Publish tab in Chromium: repos to choose from, what is typed by keyboard alone, and variants in one click."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from backend.jobs.store import JobState, Store
from backend.recipes import parse_recipe
from tests.support.browser import CHROMIUM, FLAGS, running, tab

pytestmark = pytest.mark.real

METHODS = ("nf4", "int8")


@pytest.fixture
def app(hub, tmp_path, make_artifact, monkeypatch):
    """The studio of somebody who is signed in with `hf auth login`, after a job that made two variants."""
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    data = tmp_path / "data"
    data.mkdir()
    store = Store(data / "jobs.sqlite")
    stages = [{"stage": "quantize", "method": method} for method in METHODS]
    job_id = store.add(parse_recipe({"base_model": "acme/tiny", "stages": stages}), "local")
    store.finish(job_id, JobState.COMPLETED)
    store.close()
    made = data / "jobs" / job_id / "stages"
    made.mkdir(parents=True)
    for i, stage in enumerate(stages, 1):
        shutil.move(make_artifact(f"{i}-quantize", options=stage), made)
    with running(data) as started:
        yield started


@pytest.fixture
def page(app):
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1440, "height": 1000})
        opened.goto(app.address)
        tab(opened, "Publish")
        expect(opened.locator("#publish-card")).to_contain_text("acme/tiny")
        yield opened
        browser.close()


def test_a_repo_is_chosen_or_typed_and_variants_link_to_each_other(hub, page):
    hub.add_token("hf_anna", "anna", orgs={"acme": "write", "lab": "read"})
    hub.add_model("acme/secret", {"config.json": "{}"}, private=True, used_storage=100 * 10**9)
    card, repo = page.locator("#publish-card"), page.locator("#publish-repo input")
    assert not hub.requests  # for a folder nobody needs to be known
    page.get_by_role("radio", name="The Hugging Face Hub").check()
    offered = page.locator("#publish-repo [role=option]")
    repo.click()
    expect(offered).to_contain_text(["anna/tiny-int8", "acme/tiny-int8"])
    page.keyboard.type("acme/tiny")  # which one that is offered begins with
    page.keyboard.press("Enter")
    expect(card).to_contain_text('"acme/tiny"')
    expect(repo).to_have_value("acme/tiny")
    repo.fill("")
    repo.press("Tab")
    repo.click()
    repo.press("ArrowDown")
    repo.press("Enter")
    expect(repo).to_have_value("anna/tiny-int8")
    repo.click()
    offered.nth(1).click()
    page.locator("#publish-variants input").check()  # while the repo is still being looked at
    expect(card).to_contain_text("acme/tiny-nf4")
    expect(page.locator("#publish-variants input")).to_be_checked()
    repo.fill("acme/mine")
    page.locator("#publish-start").click()  # straight after typing
    expect(page.locator("#publish-note")).to_contain_text("holds 100 GB in private repos")
    expect(page.locator("#publish-result")).to_contain_text("acme/tiny-nf4", timeout=60_000)
    expect(page.locator("#publish-result .published")).to_have_count(2, timeout=60_000)
    cards = {name: hub.files(f"acme/{name}")["README.md"].decode() for name in ("mine", "tiny-nf4")}
    assert "* [acme/tiny-nf4](https://huggingface.co/acme/tiny-nf4)" in cards["mine"]
    assert "* [acme/mine](https://huggingface.co/acme/mine)" in cards["tiny-nf4"]
