"""The page as a person uses it: a real app, real jobs, Debian's Chromium."""

import re
import shutil
import time

import pytest
from playwright.sync_api import expect

from backend.artifacts.sealing import verify
from backend.data.examine import load
from backend.data.files.rows import Source
from backend.data.options import DatasetOptions
from backend.processes.marks import marked, marker_prefix
from tests.support.adapters import edited, save_adapter
from tests.support.browser import App, tab

pytestmark = pytest.mark.real

TOKEN = "hf_" + "browser" * 5


def state(page, word, seconds=180):
    expect(page.locator("#job-state")).to_contain_text(word, timeout=seconds * 1000)


def windows(page, number):
    tab(page, "Data")
    field = page.locator("#evaluate-num_samples input[type=number]").first
    field.fill(str(number))
    field.press("Tab")
    expect(page.locator("#recipe-summary")).to_contain_text(f"{number} window")


def test_the_whole_way_from_a_model_to_a_published_card(app, page):
    expect(page.locator("#model-facts")).to_contain_text("135 M")
    expect(page.locator("#model-facts")).to_contain_text("apache-2.0")
    expect(page.locator("#model-gains")).to_contain_text("NF4")
    windows(page, 2)
    page.locator("#start button, button#start").first.click()
    expect(page.locator("#job-bar")).to_be_visible(timeout=60_000)
    page.reload()  # in the middle: nothing is lost
    tab(page, "Jobs")
    state(page, "Done")
    report = page.locator("#job-report")
    for words in ("Perplexity", "KL", "4,094", "115 MB"):
        expect(report).to_contain_text(words)
    page.locator("#job-chat").click()
    expect(page.locator("#chat-input textarea")).to_be_enabled(timeout=90_000)
    page.locator("#chat-input textarea").fill("What is the capital of Japan?")
    page.locator("#chat-send").click()
    expect(page.locator("#chat-box")).to_contain_text("Tokyo", timeout=60_000)
    expect(page.locator("#chat-speed")).to_contain_text("tokens of context used", timeout=60_000)
    with page.expect_download() as download:
        page.locator("#chat-save").click()
    rows = app.data / "talk.jsonl"
    download.value.save_as(rows)
    [talk] = load(Source(name="talk.jsonl", files=(rows,)), DatasetOptions(allow_identical=True)).train()
    assert [message.role for message in talk.messages] == ["user", "assistant"]
    assert "Tokyo" in talk.messages[1].content
    page.evaluate("""() => new MutationObserver(() => { window.answering ||= !!document.querySelector('#chat-stop') })
      .observe(document.body, { childList: true, subtree: true, attributes: true })""")
    page.locator("#chat-box button[aria-label='Retry']").last.click()
    page.wait_for_function("window.answering")  # two words may be there before anybody looks
    expect(page.locator("#chat-send")).to_be_visible(timeout=60_000)
    expect(page.locator("#chat-box .message.user")).to_have_count(1)
    page.reload()
    tab(page, "Chat")
    expect(page.locator("#chat-box")).to_contain_text("What is the capital of Japan?")
    tab(page, "Publish")
    expect(page.locator("#publish-card")).to_contain_text("SmolLM2-135M-Instruct", timeout=60_000)
    page.locator("#publish-start").click()
    expect(page.locator("#publish-result")).to_contain_text("published", timeout=60_000)
    [folder] = (app.data / "published").iterdir()
    assert verify(folder).metrics.tokens == 2 * 2047
    card = (folder / "README.md").read_text()
    assert "base_model_relation: quantized" in card
    assert str(app.data) not in card
    strangers = {address for address in page.asked if not address.startswith((app.url, "data:", "blob:"))}
    assert not strangers


def test_an_update_that_was_lost_on_its_way_is_asked_for_again(app, page):
    tab(page, "Jobs")
    choices = page.locator("#job-list input")
    before, lost, loses = choices.count(), [], [True]
    told = page.evaluate("window.gradio_config.dependencies.find((event) => event.api_name === 'hear_jobs').id")

    def lose(route):
        if not loses or f'"fn_index":{told},' not in route.request.post_data:
            return route.continue_()
        lost.append(route.request)
        return route.fulfill(json={"event_id": "0" * 32})

    page.route("**/gradio_api/queue/join*", lose)
    other = page.context.new_page()
    other.goto(app.url)
    other.locator("#start button, button#start").first.click()
    expect(other.locator("#job-bar")).to_be_visible(timeout=60_000)
    tab(other, "Jobs")
    other.locator("#job-cancel").click()
    state(other, "Canceled")
    page.wait_for_timeout(2000)  # now nothing changes any more, and nothing of it has come
    assert lost
    assert choices.count() == before
    loses.clear()
    expect(choices).to_have_count(before + 1, timeout=30_000)


def test_a_page_where_nothing_happens_asks_whether_anything_is_new_and_nothing_more(page):
    page.wait_for_function("performance.getEntriesByName(location.origin + '/changes?since=').length > 0")
    page.wait_for_timeout(2000)  # what opening the page has begun has ended
    begun = len(page.asked)
    page.wait_for_timeout(5000)
    asked = {re.sub(r"since=\w+", "since=", address) for address in page.asked[begun:]}
    assert asked == {page.url + "changes?since="}


def test_a_job_can_be_canceled_from_the_page(app, page):
    page.locator("#start button, button#start").first.click()
    expect(page.locator("#job-bar")).to_be_visible(timeout=60_000)
    page.locator("#job-cancel").click()
    state(page, "Canceled", 30)
    jobs = page.locator("#job-list label")
    before = jobs.count()
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.locator("#job-delete").click()
    page.wait_for_timeout(1500)  # a click is not heard while the one before is being answered
    expect(jobs).to_have_count(before)
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#job-delete").click()
    expect(jobs).to_have_count(before - 1)


@pytest.mark.parametrize(
    ("typed", "words"),
    [("../etc", "is a path"), ("no/such-model", "does not exist"), ("me/pickled", "pickled"), ("me/coded", "auto_map")],
)
def test_a_model_that_will_not_do_gets_one_sentence(hub, page, typed, words):
    hub.add_model("me/pickled", {"config.json": '{"model_type": "llama"}', "consolidated.pth": b"x"})
    hub.add_model("me/coded", {"config.json": '{"auto_map": {"AutoModel": "x.Y"}}', "model.safetensors": b"x" * 2000})
    page.locator("#model-query input, #model-query textarea").first.fill(typed)
    page.locator("#model-find").click()
    expect(page.locator("#model-note")).to_contain_text(words)


def test_a_model_of_the_hub_is_found_and_published_with_a_token(app, hub, page, tiny_model):
    hub.add_model("me/tiny", tiny_model)
    hub.add_token(TOKEN, "me")
    page.locator("#model-query input, #model-query textarea").first.fill("me/tiny")
    page.locator("#model-find").click()
    expect(page.locator("#model-facts")).to_contain_text("tiny")
    tab(page, "Recipe")
    page.get_by_label("Measure the quality").uncheck()
    page.locator("#start button, button#start").first.click()
    state(page, "Done")
    page.locator("#job-publish").click()
    page.get_by_role("radio", name="The Hugging Face Hub").check()
    page.locator("#publish-repo input, #publish-repo textarea").first.fill("me/tiny-nf4")
    page.locator("#publish-token input").fill(TOKEN)
    page.locator("#publish-start").click()
    expect(page.locator("#publish-result")).to_contain_text("me/tiny-nf4", timeout=60_000)
    expect(page.locator("#publish-result")).to_contain_text("ublished", timeout=60_000)
    assert "model.safetensors" in hub.files("me/tiny-nf4")
    on_disk = [path for path in app.data.rglob("*") if path.is_file() and path.stat().st_size < 10_000_000]
    assert not [path for path in on_disk if TOKEN.encode() in path.read_bytes()]


def test_an_adapter_named_as_the_model_is_merged_and_quantized(hub, page, tiny_model, tmp_path):
    hub.add_model("me/tiny", tiny_model)
    hub.add_model("me/law", edited(save_adapter(tiny_model, tmp_path / "law"), base_model_name_or_path="me/tiny"))
    page.locator("#model-query input, #model-query textarea").first.fill("me/law")
    page.locator("#model-find").click()
    page.locator("#model-merge").click()
    adapters, summary = page.locator("#merge-adapters input").first, page.locator("#recipe-summary")
    expect(adapters).to_have_value("me/law")
    adapters.fill("")  # as by Delete and by pasting: no key of a letter is pressed
    expect(summary).to_contain_text("is empty")
    expect(page.locator("#merge-adapters")).to_contain_text("Is empty")
    adapters.fill("me/law")
    expect(summary).to_contain_text("Merge an adapter")
    page.get_by_role("checkbox", name="Keep").uncheck()
    expect(summary).to_contain_text("leave evaluate out")
    page.get_by_label("Measure the quality").uncheck()
    expect(summary).to_contain_text("not saved")
    page.locator("#start button, button#start").first.click()
    state(page, "Done")
    expect(page.locator("#job-view")).to_contain_text("Merged → NF4 · tiny")
    expect(page.locator("#job-report")).to_contain_text("tiny · merged · NF4")


def set_to(page, field, value):
    place = page.locator(f"#{field} input").first
    place.fill(str(value))
    place.press("Tab")


def test_a_training_is_watched_stopped_and_kept_and_its_adapter_merged(app, page):
    tab(page, "Data")
    page.locator("#data-tune").click()
    summary = page.locator("#recipe-summary")
    expect(summary).to_contain_text("Fine-tune an adapter")
    set_to(page, "rows-split", "train[:24]")
    set_to(page, "rows-validation_size", 4)
    tab(page, "Recipe")
    page.get_by_role("radio", name="Quick look").click()
    expect(page.locator("#finetune-max_steps input").first).to_have_value("60")
    set_to(page, "finetune-per_device_train_batch_size", 1)
    set_to(page, "finetune-max_length", 64)
    set_to(page, "finetune-max_steps", 500)
    set_to(page, "finetune-num_train_epochs", 50)
    page.get_by_label("Merge the fine-tuned adapter").uncheck()
    expect(summary).to_contain_text("activations")
    expect(summary).to_contain_text("Ready to merge and publish")
    expect(page.locator("#tuning-rows")).to_contain_text("train[:24]")
    page.reload()  # the browser remembers it
    expect(summary).to_contain_text("Ready to merge and publish", timeout=20_000)
    page.locator("#start button, button#start").first.click()
    loss = page.locator("#job-training svg").first
    expect(loss).to_be_visible(timeout=240_000)
    expect(page.locator("#job-answers")).to_contain_text("before", timeout=120_000)
    drawn = loss.get_attribute("aria-label")
    expect(loss).not_to_have_attribute("aria-label", drawn, timeout=120_000)  # it moves
    page.locator("#job-keep").click()
    expect(page.locator("#job-training")).to_contain_text("Stopping after this step", timeout=20_000)
    state(page, "Done", 240)
    expect(page.locator("#job-training")).to_contain_text("Stopped by its user.")
    adapters = [path for path in app.data.glob("jobs/*/stages/1-finetune") if (path / "artifact.json").is_file()]
    [made] = [verify(path).training for path in adapters]
    assert 0 < made.steps < made.planned_steps
    expect(page.locator("#job-chat")).to_be_visible()
    page.locator("#job-merge").click()
    expect(page.locator("#merge-adapters input").first).to_have_value(str(adapters[0]), timeout=20_000)
    expect(summary).to_contain_text("Quantize to NF4")
    page.get_by_label("Measure the quality").uncheck()
    page.locator("#start button, button#start").first.click()
    expect(page.locator("#job-view")).to_contain_text("Merged → NF4", timeout=20_000)
    state(page, "Done")
    expect(page.locator("#job-report")).to_contain_text("merged · NF4", timeout=20_000)
    assert not [address for address in page.asked if not address.startswith((app.url, "data:", "blob:"))]


def test_a_killed_app_goes_on_with_its_job_after_a_restart(chromium, tmp_path, app):
    other = App(tmp_path / "data")
    shutil.copytree(app.data / "models", other.data / "models")  # the demo model, made once
    other.start()
    try:
        page = chromium.new_page()
        page.goto(other.address)
        expect(page.locator("#model-facts")).to_contain_text("LlamaForCausalLM", timeout=20_000)
        windows(page, 1)
        page.locator("#start button, button#start").first.click()
        expect(page.locator("#job-bar")).to_be_visible(timeout=60_000)
        other.kill()
        deadline = time.monotonic() + 10
        while list(marked(marker_prefix(other.data))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not list(marked(marker_prefix(other.data)))
        page.goto("about:blank")  # an open page reloads itself when the app is back, and would race with goto()
        other.start()
        page.goto(other.address)
        tab(page, "Jobs")
        state(page, "Done")
        page.close()
    finally:
        other.stop()


def test_where_it_will_run_orders_the_methods_and_is_remembered(page):
    tab(page, "Recipe")
    page.locator("#target label", has_text="vLLM without a GPU").click()
    methods = page.locator("#method label")
    expect(methods.last).to_contain_text("Does not run there")
    expect(methods.first.locator("input")).to_be_checked()
    expect(page.locator("#recipe-summary")).not_to_contain_text("NF4")
    page.reload()
    tab(page, "Recipe")
    expect(page.locator("#target input:checked")).to_have_value("vllm-cpu")
    expect(methods.last).to_contain_text("Does not run there")
