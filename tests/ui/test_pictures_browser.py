"""Pictures in the chat of the page: added, shown, asked about, kept out of what is kept, in a real browser."""

import json
import re
import shutil

import pytest
from playwright.sync_api import expect

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import partial, seal
from backend.jobs.store import JobState, Store
from backend.recipes import parse_recipe
from backend.settings import Settings
from tests.support.browser import choose, open_chat, running, tab
from tests.support.pictures import encoded, make_gemma
from ui.chat.talk import NOT_KEPT
from ui.visitor import LOCAL

pytestmark = pytest.mark.real

CAST = {"stage": "quantize", "method": "cast"}
LOADS = 120_000  # milliseconds, on a machine that has other things to do


@pytest.fixture(scope="module")
def app(tmp_path_factory, tiny_model):
    """An app whose user has a result that reads pictures, and one that reads none."""
    home = tmp_path_factory.mktemp("pictures")
    settings = Settings(data=home / "data").writable()
    store = Store(settings.data / "jobs.sqlite")
    for name, folder in (("seeing", make_gemma(home / "gemma")), ("blind", tiny_model)):
        job = store.add(parse_recipe({"base_model": f"me/{name}", "stages": [CAST]}), LOCAL)
        result = settings.jobs / job / "stages" / "1-quantize"
        draft = partial(result)
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        seal(draft, result, Artifact(kind="quantized", stage="quantize", options=CAST, created=now()))
        store.finish(job, JobState.COMPLETED)
    store.close()
    with running(settings.data) as started:
        yield started


@pytest.fixture
def chat(page):
    """The page at its Chat tab, with transformers as its engine."""
    open_chat(page)
    page.locator("#chat-engine").get_by_text("transformers", exact=True).click()
    page.locator("#sampling-max_tokens input").first.fill("8")
    return page


def load(chat, name):
    choose(chat, "#chat-artifact", name)
    chat.locator("#chat-start").click()
    expect(chat.locator("#chat-status")).to_contain_text("served by transformers", timeout=LOADS)


def add(chat, *pictures):
    """Put pictures into the message field, as a person does."""
    with chat.expect_file_chooser() as chooser:
        chat.locator("#chat-input").get_by_label("Upload a file").click()
    chooser.value.set_files(
        [{"name": f"{i}.png", "mimeType": "image/png", "buffer": data} for i, data in enumerate(pictures)]
    )
    expect(chat.locator("#chat-input").get_by_label("Remove file")).to_have_count(len(pictures))


def ask(chat, question):
    chat.locator("#chat-input textarea").fill(question)
    chat.locator("#chat-send").click()


def test_a_picture_is_asked_about_and_stays_out_of_what_is_kept_and_downloaded(chat, tmp_path):
    load(chat, "seeing")
    add(chat, encoded(size=(900, 600)), encoded(size=(600, 900), color="blue"))
    chat.locator("#chat-send").click()
    expect(chat.locator("#chat-speed")).to_contain_text("Write what you want to know of the picture")
    ask(chat, "Which colors are these?")
    expect(chat.locator("#chat-speed")).to_contain_text("tokens of context used", timeout=60_000)
    seen = chat.locator("#chat-box img")
    expect(seen).to_have_count(2)
    for picture in seen.all():
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("img => img.naturalWidth") in (900, 600)
        assert max(picture.bounding_box()[side] for side in ("width", "height")) <= 200
    expect(chat.locator("#chat-input").get_by_label("Remove file")).to_have_count(0)

    context = chat.locator("#chat-speed").inner_text()
    chat.locator("#sampling-max_tokens input").first.fill("7")
    chat.locator("#chat-input textarea").fill("And what else?")
    chat.locator("#chat-box button[aria-label='Retry']").last.click()
    expect(chat.locator("#chat-speed")).to_contain_text(re.compile("[1-7] tokens ·.* of context used"), timeout=60_000)
    expect(chat.locator("#chat-send")).to_be_visible(timeout=60_000)
    expect(chat.locator("#chat-box img")).to_have_count(2)
    expect(chat.locator("#chat-input textarea")).to_have_value("And what else?")
    chat.locator("#chat-send").click()
    expect(chat.locator("#chat-speed")).not_to_contain_text(context, timeout=60_000)
    expect(chat.locator("#chat-speed")).to_contain_text("tokens of context used", timeout=60_000)
    expect(chat.locator("#chat-send")).to_be_visible(timeout=60_000)

    kept = chat.evaluate("Object.values(localStorage).join('')")
    assert len(kept) < 10_000
    with chat.expect_download() as download:
        chat.locator("#chat-save").click()
    download.value.save_as(tmp_path / "talk.jsonl")
    row = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [turn["role"] for turn in row if turn["role"] == "user"] == ["user"] * 2
    assert row[0]["content"] == f"{NOT_KEPT}\n\nWhich colors are these?"

    add(chat, *[encoded()] * 3)
    ask(chat, "And these?")
    expect(chat.locator("#chat-speed")).to_contain_text("has 5 pictures, 4 at most: start a new one")
    expect(chat.locator("#chat-input textarea")).to_have_value("And these?")
    expect(chat.locator("#chat-input").get_by_label("Remove file")).to_have_count(3)

    chat.reload()
    tab(chat, "Chat")
    expect(chat.locator("#chat-box")).to_contain_text(NOT_KEPT)
    expect(chat.locator("#chat-box img")).to_have_count(0)


def test_a_model_that_reads_no_pictures_is_offered_none(chat):
    load(chat, "blind")
    expect(chat.locator("#chat-input textarea")).to_be_enabled()
    expect(chat.locator("#chat-input").get_by_label("Upload a file")).to_have_count(0)
