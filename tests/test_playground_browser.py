"""The playground as a person uses it: what the demo model became is loaded, asked and compared in a real browser."""

import re

import pytest
from playwright.sync_api import expect

from tests.test_page_browser import App, chromium, page, tab  # noqa: F401 - fixtures

pytestmark = pytest.mark.real

SECONDS = 240_000  # for a model to load, in milliseconds, on a machine that has other things to do
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def app(demo_results):
    """An app on the data folder in which the jobs were done."""
    started = App(demo_results.data).start()
    yield started
    started.stop()


@pytest.fixture
def chat(page):  # noqa: F811
    """The page at its Chat tab, where answers are not left to chance."""
    tab(page, "Chat")
    page.locator("#chat-room").get_by_text("More options").first.click()
    page.locator("#sampling-temperature input").first.fill("0")
    return page


@pytest.mark.parametrize(
    ("title", "engine"), [("NF4", "transformers"), ("GPTQ", "vllm"), ("AWQ", "vllm"), ("tuned", "vllm")]
)
def test_every_variant_is_loaded_and_knows_the_capital_of_france(chat, title, engine):
    chat.locator("#chat-artifact input").click()
    chat.get_by_role("option", name=re.compile(f" · {title} · ")).click()
    chat.locator("#chat-start").click()
    expect(chat.locator("#chat-status")).to_contain_text(f"served by {engine}", timeout=SECONDS)
    chat.locator("#chat-input textarea").fill(QUESTION)
    chat.locator("#chat-send").click()
    expect(chat.locator("#chat-box .message.bot")).to_contain_text("Paris", timeout=60_000)
    expect(chat.locator("#chat-speed")).to_contain_text("tokens of context used", timeout=60_000)


def test_two_models_answer_side_by_side_and_a_blind_vote_is_counted(chat):
    chat.locator("#compare-prompt textarea").fill(QUESTION)
    chat.locator("#compare-ask").click()
    cells = chat.locator("#compare-board article")
    expect(cells).to_have_count(2)
    for number, title in enumerate(("tuned", "AWQ")):
        expect(cells.nth(number).locator("h3")).to_contain_text(title)
        expect(cells.nth(number).locator("p")).to_contain_text("Paris", timeout=SECONDS)
        expect(cells.nth(number).locator("small")).to_contain_text(re.compile(r"tokens/s.* of memory"))
    chat.locator("#compare-blind input").check()
    chat.locator("#compare-ask").click()
    chat.locator("#compare-vote").get_by_text("A", exact=True).click(timeout=SECONDS)
    expect(chat.locator("#compare-note tbody tr")).to_have_count(2)
    expect(chat.locator("#compare-note tbody tr").first).to_contain_text(re.compile(r"1\s*1$"))
    chat.locator("#chat-unload").click()
    expect(chat.locator("#chat-status")).to_contain_text("not loaded")
