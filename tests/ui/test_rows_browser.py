"""Rows in the page: every bad file is uploaded in a real browser, and its answer stands where one looks."""

import re

import pytest
from playwright.sync_api import expect

from tests.support.browser import choose, tab
from tests.support.row_examples import ACCEPTED, GOOD, PAIRS, REFUSED, jsonl

pytestmark = pytest.mark.real

SECONDS = 150_000  # for an answer, in milliseconds, on a machine that has other things to do


@pytest.fixture
def rows(page):
    """The part of the page that asks what is learned from."""
    tab(page, "Data")
    page.locator("#data-tune").click()
    room = page.locator("#rows")
    expect(room).to_be_visible()
    yield room
    expect(page.locator(".toast-body")).to_have_count(0)


def upload(page, name, data):
    page.get_by_role("radio", name="My own file").check()
    remove = page.locator("#rows-upload button[aria-label='Clear'], #rows-upload button[aria-label='Remove this file']")
    if remove.count():
        remove.first.click()
    expect(page.locator("#rows-panel")).to_contain_text("No data inspected yet")
    file = page.locator("#rows-upload input[type=file]")
    file.set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": data})


def ended(page):
    expect(page.locator(".examined")).to_have_attribute("data-state", re.compile("completed|error"), timeout=SECONDS)


def test_files_of_the_study_get_their_answers_in_the_page(page, rows):
    """Some of each kind: tests/data/test_preview.py asks for all of them where a look takes no five seconds."""
    silent = []
    for case, (name, data, words) in [*REFUSED.items()][::8] + [*ACCEPTED.items()][::8]:
        upload(page, name, data)
        ended(page)
        page.wait_for_timeout(100)
        told = rows.inner_text()
        if not re.search(f"(?is){words}", told) or ("Ready for training" in told) != (case in ACCEPTED):
            silent.append((case, told))
        assert str(page.locator("body").inner_text()).count("Traceback") == 0
    assert not silent


def test_what_is_learned_is_coloured_and_a_row_is_text_and_nothing_else(page, rows):
    hostile = "<img src=x onerror=document.title='owned'> ${7*7} {{7*7}}\n  two\tspaces"
    upload(page, "rows.jsonl", jsonl({"prompt": hostile, "completion": "<b>4</b>"}, *PAIRS))
    samples = page.locator(".samples li")
    expect(samples).to_have_count(4, timeout=SECONDS)
    assert samples.first.locator("mark").inner_text() == "<b>4</b><|im_end|>"
    assert hostile in samples.first.inner_text()
    assert page.title() == "Weightsmith"
    expect(page.locator(".lengths i").first).to_be_attached()
    expect(page.locator("#rows-sight")).to_contain_text("Counted on every row")


def test_a_question_is_answered_where_it_is_asked_and_the_rows_are_looked_at_again(page, rows):
    upload(page, "rows.csv", b"What is 2+2?,4\nWhat is 3+3?,6\n")
    expect(page.locator("#rows-ask-header")).to_contain_text("Is the first row a header", timeout=SECONDS)
    page.locator("#rows-header").get_by_text("no", exact=True).click()
    expect(page.locator("#rows-ask-user_column")).to_contain_text("Which columns are to be used", timeout=SECONDS)
    for name, column in (("user_column", "column_1"), ("assistant_column", "column_2")):
        choose(page, f"#rows-{name}", column)
    expect(page.locator(".samples")).to_contain_text("What is 3+3?", timeout=SECONDS)
    expect(page.locator(".question p")).to_have_count(0)
    expect(page.locator("#rows-panel")).to_contain_text("Ready for training")


def test_a_hub_data_set_offers_the_configs_that_there_are(hub, page, rows):
    hub.add_dataset("me/rows", {"en/train.jsonl": GOOD, "de/train.jsonl": GOOD})
    hub.add_dataset("me/script", {"rows.py": b"raise SystemExit"})
    page.locator("#rows-source").get_by_role("radio", name="A data set on the Hub").check()
    name = page.locator("#rows-dataset input, #rows-dataset textarea").first
    name.fill("me/script")
    name.press("Enter")
    expect(page.locator("#rows-panel")).to_contain_text("only a loading script, 'rows.py'", timeout=SECONDS)
    name.fill("me/rows")
    name.press("Enter")
    expect(page.locator("#rows-ask-config")).to_contain_text("has several configs", timeout=SECONDS)
    choose(page, "#rows-config", "de")
    expect(page.locator("#rows-panel")).to_contain_text("Ready for training", timeout=SECONDS)
    expect(page.locator("#rows-panel")).to_contain_text("me/rows (de, train")


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(page, rows):
    page.get_by_role("radio", name="My own file").check()
    expect(page.locator("#rows-upload")).to_be_visible()
    page.evaluate("""() => {
      const many = new DataTransfer(), input = document.querySelector('#rows-upload input[type=file]');
      const file = new File(['x'], 'rows.csv');
      Object.defineProperty(file, 'size', { value: 300e6 });
      Object.defineProperty(input, 'files', { value: [file] });
      input.dispatchEvent(new Event('change', { bubbles: true }));
    }""")
    expect(page.locator("#rows-upload-refused")).to_have_text(
        "'rows.csv' has 300 MB, at most 200 MB can be uploaded: choose a part of it."
    )
    assert not [address for address in page.asked if "/upload" in address]


def test_what_calibration_reads_is_counted_and_doubted_where_it_is_chosen(page):
    tab(page, "Recipe")
    page.locator("#method").get_by_text("GPTQ · 2 to 8 bit").click()
    tab(page, "Data")
    panel = page.locator("#calibration-panel")
    expect(panel).to_contain_text("111 windows of 512; 128 were asked for", timeout=SECONDS)
    page.locator("#calibration-source").get_by_role("radio", name="My own file").check()
    german = "Die Bäckerei am Markt öffnet um sechs Uhr, und vor der Tür stehen schon die ersten Kunden."
    rows = jsonl(*({"frage": f"{i}. {german}", "antwort": german} for i in range(60)))
    file = page.locator("#calibration-upload input[type=file]")
    file.set_input_files({"name": "zeilen.jsonl", "mimeType": "application/json", "buffer": rows})
    expect(page.locator("#calibration-ask-user_column")).to_contain_text(
        "Which columns are to be used", timeout=SECONDS
    )
    for name, column in (("user_column", "frage"), ("assistant_column", "antwort")):
        choose(page, f"#calibration-{name}", column)
    expect(panel).to_contain_text("reads German, quality is measured in English", timeout=SECONDS)
    expect(panel).to_contain_text("tokens: ")
