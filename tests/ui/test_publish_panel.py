"""The publish panel in another Gradio app: what it shows, what it publishes, and what it says where it cannot."""

import os
import subprocess
import sys
import threading

import gradio as gr
import pytest
from playwright.sync_api import expect, sync_playwright

from backend.errors import LoginError, SpecError
from backend.processes.child import ROOT
from backend.publish.card.metadata import split_card
from examples.publish_app import build
from tests.support.browser import CHROMIUM, FLAGS, free_port
from ui.publish_panel import publish_panel


@pytest.fixture
def panel(make_artifact):
    with gr.Blocks():
        return publish_panel(make_artifact())


def fields(panel, repo="me/new", **typed):
    more = {"update": False, "gated": "", "collection": ""} | typed
    said = {field: more[name] for name, field in panel.hub.more.fields.items()}
    contents = {panel.contents.text: "", panel.contents.made: ""}
    return {panel.hub.repo: repo, panel.hub.private: True, panel.insist: False, panel.hub.token: "", **said, **contents}


def test_it_shows_what_the_folder_is_and_what_would_be_sent(hub, panel):
    shown = panel.preview(fields(panel))
    assert "quantized · of acme/tiny" in shown[panel.about]
    assert "Checked in transformers" in shown[panel.about]
    assert "model.safetensors" in shown[panel.contents.files]
    assert shown[panel.contents.card].startswith("```yaml\n")
    assert "base_model: acme/tiny" in shown[panel.contents.card]
    assert "me/new" in shown[panel.contents.card]
    assert shown[panel.insist] == gr.update(visible=False)
    assert not hub.requests


def test_it_publishes_and_tells_how_far_it_is(hub, panel):
    told = [update[panel.result] for update in panel.push(fields(panel), "hf_write")]
    assert 'role="progressbar"' in told[0]
    assert any("Uploading" in text and "100%" in text for text in told)
    assert f"{hub.url}/me/new" in told[-1]
    assert hub.files("me/new")["README.md"]
    assert hub.repos["models", "me/new"].private


def test_a_visitor_is_offered_repos_once_they_have_given_a_token(hub, panel):
    hub.add_token("hf_visitor", "visitor", orgs={"acme": "write", "lab": "read"})
    offered = panel.hub.offer(panel.folder, "my model", "hf_visitor")[panel.hub.repo]
    assert offered == gr.update(choices=["visitor/my-model", "acme/my-model"])
    nothing = gr.update(choices=[])
    assert panel.hub.offer(panel.folder, "my model", None)[panel.hub.repo] == nothing
    assert panel.hub.offer(panel.folder / "not there yet", "my model", "hf_visitor")[panel.hub.repo] == nothing


def test_a_storage_that_may_be_too_small_is_told_and_the_push_goes_on(hub, panel):
    hub.add_model("me/secret", {"config.json": "{}"}, private=True, used_storage=100 * 10**9)
    told = list(panel.push(fields(panel), "hf_write"))
    assert "holds 100 GB in private repos and " in told[0][panel.note]
    assert f"{hub.url}/me/new" in told[-1][panel.result]


def test_the_text_of_the_card_can_be_edited_and_what_stands_before_it_cannot(hub, panel):
    made = panel.preview(fields(panel))
    typed = fields(panel) | {panel.contents.made: made[panel.contents.made]}
    unchanged = typed | {panel.contents.text: made[panel.contents.text] + "\n"}
    edited = typed | {panel.contents.text: "# Mine\n\nI made it."}
    assert panel.contents.edited(unchanged) is None
    shown = panel.preview(edited)
    assert "base_model: acme/tiny" in shown[panel.contents.card]
    assert "I made it." in shown[panel.contents.card]
    assert panel.contents.text not in shown
    list(panel.push(edited, "hf_write"))
    head, text = split_card(hub.files("me/new")["README.md"].decode())
    assert "base_model: acme/tiny" in head
    assert text.startswith("# Mine")


def test_a_repo_is_updated_when_asked_and_whoever_sees_it_goes_on_to(hub, panel):
    list(panel.push(fields(panel), "hf_write"))
    hub.repos["models", "me/new"].private = False
    with pytest.raises(SpecError, match="exists already"):
        list(panel.push(fields(panel) | {panel.contents.text: "Again."}, "hf_write"))
    typed = fields(panel, update=True, gated="manual", collection="Small ones") | {panel.contents.text: "Again."}
    told = [update[panel.result] for update in panel.push(typed, "hf_write")]
    assert f"{hub.url}/me/new" in told[-1]
    assert hub.files("me/new")["README.md"].endswith(b"Again.\n")
    assert not hub.repos["models", "me/new"].private
    assert hub.repos["models", "me/new"].gated == "manual"


def test_the_token_of_whoever_runs_the_app_is_never_used(hub, panel, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    with pytest.raises(LoginError, match="sign in, or paste one"):
        list(panel.push(fields(panel), None))
    assert not hub.requests


def test_what_fails_on_the_way_is_a_sentence_and_leaves_no_bar(hub, panel):
    hub.fail("POST */commit/*", 403)
    told = []
    with pytest.raises(LoginError, match="Your token may not write there"):
        told.extend(panel.push(fields(panel), "hf_write"))
    assert told[-1] == {panel.result: ""}


def test_a_folder_without_a_passed_check_is_published_only_on_request(hub, make_artifact):
    with gr.Blocks():
        panel = publish_panel(make_artifact(check=None))
    assert panel.preview(fields(panel, repo=""))[panel.insist] == gr.update(visible=True)
    with pytest.raises(SpecError, match="check it first"):
        list(panel.push(fields(panel), "hf_write"))
    list(panel.push(fields(panel) | {panel.insist: True}, "hf_write"))
    assert hub.files("me/new")


def test_no_repo_is_said_before_anything_is_asked(hub, panel):
    with pytest.raises(SpecError, match="Name the repo first"):
        list(panel.push(fields(panel, repo=" "), "hf_write"))
    assert not hub.requests


def test_its_events_are_not_recorded_in_the_browser(make_artifact):
    page = build(str(make_artifact()))
    assert {fn.api_visibility for fn in page.fns.values()} == {"private"}


def test_the_example_is_short():
    assert len((ROOT / "examples" / "publish_app.py").read_text().splitlines()) <= 30


@pytest.mark.real
def test_a_visitor_of_the_example_publishes_a_folder(hub, make_artifact):
    port, folder = free_port(), make_artifact()
    command = [sys.executable, "-m", "examples.publish_app", str(folder), "--port", str(port)]
    app = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True)
    try:
        assert app.stdout
        watch = threading.Timer(60, app.kill)
        watch.start()
        assert f":{port}" in app.stdout.readline()
        watch.cancel()
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            _publish(browser.new_page(), f"http://127.0.0.1:{port}")
            browser.close()
    finally:
        app.kill()
        app.wait()
    assert set(hub.files("me/from-panel")) >= {"README.md", "model.safetensors", "artifact.json"}
    assert hub.repos["models", "me/from-panel"].private
    assert len(hub.commits("me/from-panel")) == 2


def _publish(page, url):
    page.goto(url)
    expect(page.locator("#publish-about")).to_contain_text("of acme/tiny", timeout=30_000)
    expect(page.locator("#publish-files")).to_contain_text("model.safetensors")
    page.locator("#publish-start").click()
    expect(page.locator("#publish-note")).to_contain_text("The Hub wants a token")
    page.locator("#publish-token input").fill("hf_write")
    repo = page.locator("#publish-repo input")
    repo.click()
    expect(page.locator("#publish-repo [role=option]")).to_contain_text(["me/1-quantize", "lab/1-quantize"])
    repo.fill("me/from-panel")
    page.locator("#publish-start").click()
    expect(page.locator("#publish-result")).to_contain_text("Every file was read back and compared.", timeout=60_000)
    expect(page.locator("#publish-note")).to_have_text("")
    expect(page.locator("#publish-result a")).to_contain_text("/me/from-panel")
    if shot := os.environ.get("SHOT"):
        page.screenshot(path=shot, full_page=True)
