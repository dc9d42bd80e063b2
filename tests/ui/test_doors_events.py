"""Every event of the page, with every name of Anna's that it can be given, as Anna, Ben, Carl and nobody.

An event that is not in the table here fails: whoever adds one says whom its handler asks for.
"""

import json
import re

import gradio as gr
import pytest

from backend.errors import JobError
from backend.models.demo import demo_facts
from backend.serve.server import ServerStatus
from tests.support.doors import DUPLICATE, SIGN_IN
from tests.support.house import CANARY, call, event, identities, profile, space_of_anna
from tests.support.steps import steps
from ui.access.browser_event import read_event
from ui.access.guard import Guard

space = pytest.fixture(scope="module")(space_of_anna)

# Event: whom its handler asks for. FREE: nobody, it touches nothing of anybody's; MINE: it shows what is the visitor's,
# which is nothing to a stranger; OWNER: who has signed in; MEMBER: who may run jobs here; BROWSER: it has no handler.
# Gradio names what cancels an event and what signs in; all others are named where they are connected.
FREE, MINE, OWNER, MEMBER, BROWSER = "free", "mine", "owner", "member", "browser"
EVENTS = {
    FREE: """
model_find, model_pick, model_merge, model_demo, model_revise,
model_find_standing, model_pick_standing, model_merge_standing, model_demo_standing, model_revise_standing,
model_find_refresh, model_pick_refresh, model_merge_refresh, model_demo_refresh, model_revise_refresh,
data_source, data_uploaded, data_finetune, data_finetune_changed,
rows_source, rows_upload, calibration_source, calibration_upload,
rows_source_changed, rows_upload_changed, calibration_source_changed, calibration_upload_changed,
recipe_finetune, recipe_merge, recipe_method, recipe_preset, recipe_keep, recipe_check, recipe_to_data,
recipe_apply, recipe_load, recipe_target, recipe_target_changed,
recipe_changed, recipe_surveyed, recipe_method_changed, recipe_preset_changed, recipe_keep_changed,
recipe_apply_refresh, recipe_load_refresh, jobs_to_merge_refresh,
start_keep_chatting, job_keep_chatting, publish_keep_chatting,
chat_restore, chat_stop, chat_clear, chat_cleared, chat_pick_cleared, chat_forget,
chat_send_kept, chat_retry_kept, chat_edit_kept, compare_stop, compare_vote,
publish_where, publish_folder, deploy_refuse, _check_login_status
""",
    MINE: """
jobs_pick, jobs_load, chat_enter, publish_enter, publish_offer,
rows_enter, rows_again, rows_begun, calibration_enter, calibration_again, calibration_begun,
hear_rows, hear_calibration, hear_jobs
""",
    OWNER: """
jobs_keep, jobs_cancel, jobs_delete, jobs_to_merge, jobs_to_publish,
chat_pick, chat_unload, chat_send_look, chat_retry_look, chat_edit_look, publish_pick, publish_edit,
hear_server, hear_training, hear_log, hear_publications, deploy_ask, deploy_agree
""",
    MEMBER: """
recipe_start, recipe_unload_and_start, jobs_retry, jobs_unload_and_retry, jobs_to_chat,
chat_load, chat_install, chat_send, chat_retry, chat_edit, compare_ask, compare_many,
publish_start, publish_unload_and_start,
rows_look, rows_source_look, rows_upload_look,
calibration_look, calibration_source_look, calibration_upload_look
""",
    BROWSER: """
keep_tab, listen, heard_jobs, heard_training, heard_log, heard_publications, heard_server, heard_rows,
heard_calibration, data_refuse_large, model_begin, chat_save, compare_save, publish_begin, publish_typed_stays,
unnamed, unnamed_1, unnamed_2, js_fn
""",
}
KINDS = {event.strip(): kind for kind, events in EVENTS.items() for event in events.split(",")}


def with_annas_names(house, fn):
    """Return an event's inputs with every name of Anna's that it could be given, as though Gradio let them through."""
    page, text = house.page, {"recipe-yaml": "base_model: demo", "model-hits": "demo"}
    text |= {"chat-input": {"text": "Hello?", "files": []}}
    ticks = [fn for fn in page.fns.values() if fn.api_name == "hear_rows"]
    states = {event(page, "jobs_keep").inputs[0]: house.done} | {fn.inputs[0]: house.preview for fn in ticks}
    states[event(page, "model_find_standing").inputs[1]] = demo_facts()
    states[next(block for block in event(page, "model_merge").inputs if block.value is None
                and block not in states and isinstance(block, gr.State))] = ("anna/adapter", "demo")  # fmt: skip
    said = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    named = text | {
        "job-list": house.done, "chat-artifact": house.key, "publish-artifact": house.key, "chat-box": said,
        "compare-models": [house.key, f"{house.done}/base"], "publish-variants": [house.key], "tuning": True,
        "compare-prompt": "Hello?", "compare-file": house.file, "compare-vote": "mine", "merge-adapters": "",
    }  # fmt: skip

    def value(block):
        if block in states:
            return states[block]
        found = named.get(block.elem_id, getattr(block, "value", None))
        return "" if found is None and isinstance(block, gr.Textbox) else found

    return {block: value(block) for block in fn.inputs}


def told(house, fn, who):
    """Return everything that a handler answers somebody, its refusal too."""
    try:
        return str(call(fn, with_annas_names(house, fn), who))
    except gr.Error as e:
        return str(e)


def events(kind):
    return [event for event, known in KINDS.items() if known == kind]


def test_every_event_is_in_the_table_and_the_table_holds_no_other(space):
    fns = space.page.fns.values()
    assert {fn.api_name for fn in fns} == set(KINDS)
    assert {fn.api_name for fn in fns if fn.fn is None} == set(events(BROWSER))


def test_no_event_is_named_after_the_function_that_handles_it(space):
    ours = [fn for fn in space.page.fns.values() if fn.fn and not fn.fn.__module__.startswith("gradio.")]
    assert not [fn.api_name for fn in ours if re.fullmatch(rf"{fn.name.strip('<>')}(_\d+)?", fn.api_name)]


@pytest.mark.parametrize("wanted", [event for event in KINDS if event not in events(BROWSER)])
def test_an_event_asks_whose_things_it_is_given(space, wanted):
    before = space.state_of_anna()
    fn = event(space.page, wanted)
    heard = {user: told(space, fn, profile(user)) for user in ("ben", "carl")}
    heard["nobody"] = told(space, fn, None)
    assert not [who for who, words in heard.items() if CANARY in words]
    if KINDS[wanted] in (OWNER, MEMBER):
        assert SIGN_IN in heard["nobody"]
        assert (DUPLICATE in heard["carl"]) is (KINDS[wanted] == MEMBER)
        assert DUPLICATE not in heard["ben"]
    assert space.state_of_anna() == before


@pytest.mark.parametrize("wanted", ["chat_install", "jobs_to_merge"])
def test_what_changes_the_machine_is_refused_on_a_space_though_a_member_asks(space, wanted):
    for user in ("anna", "ben"):
        assert "on your own machine only" in told(space, event(space.page, wanted), profile(user))
    assert not space.studio.installations["vllm"].installs


def test_no_event_tells_a_stranger_what_lies_where_on_the_machine(space, tmp_path):
    there, absent = tmp_path / "rows.jsonl", tmp_path / "none.jsonl"
    there.write_text("{}")
    keep = event(space.page, "recipe_keep")
    heard = []
    for path in (there, absent):
        given = with_annas_names(space, keep)
        variants = next(block for block in given if block.elem_id == "variants")
        given[variants] = [json.dumps({"method": "gptq", "calibration": str(path)})]
        heard.append(str(call(keep, given, None)).replace(str(path), "PATH"))
    assert heard[0] == heard[1]
    folder = event(space.page, "publish_folder")
    assert call(folder, {folder.inputs[0]: "here"}, None) == ""


@pytest.mark.parametrize("index", [-1, 10**6, 10**30])
def test_an_event_that_the_page_does_not_have_is_told_so(space, index):
    anna = identities(space)["anna"]
    asked = {"fn_index": index, "data": [], "session_hash": anna.session}
    assert anna.ask("POST", "/gradio_api/queue/join", json=asked)[0] == 404


@pytest.mark.parametrize("route", ["queue/join", "cancel"])
@pytest.mark.parametrize("wrong", [{"data": "x" * 100_000}, {"trigger_id": "x" * 100_000}, {"data": {"a": "x" * 9000}}])
def test_what_gradio_cannot_read_is_not_repeated(space, route, wrong):
    anna = identities(space)["anna"]
    asked = {"fn_index": 0, "data": [], "session_hash": anna.session, **wrong}
    status, said = anna.ask("POST", f"/gradio_api/{route}", json=asked)
    assert status == 422
    assert len(said) < 200


@pytest.mark.parametrize(
    "body",
    [
        {"data": [], "session_hash": "x" * 65},
        {"data": [], "session_hash": "é"},
        {"data": [], "session_hash": ["a"]},
        {"data": [], "session_hash": "a/../b"},
        {"data": [], "fn_index": "0"},
        {"data": [], "fn_index": 1.5},
        {"data": [], "fn_index": True},
        {"data": [], "event_id": "e" * 65},
        {"data": ["half of \ud83d\ude00: \ud83d"]},
        {"data": [], "event_data": {"\udc00": 1}},
        {"data": [[[]] * 100_001]},
        {"data": json.loads("[" * 40 + "]" * 40)},
    ],
)
def test_an_event_whose_names_or_values_are_none_is_refused_and_not_remembered(space, body):
    guard = Guard(None, space.studio.settings, None, lambda event: None, lambda who: ())
    before = len(guard._ownership._sessions)
    said = json.dumps(body)
    assert identities(space)["anna"].ask("POST", "/gradio_api/queue/join", content=said)[0] in (400, 404, 413)
    assert len(guard._ownership._sessions) == before


@pytest.mark.parametrize("part", ['{"path":""}', "[1]", '"a"', "1e9", '{"a":{"b":[]}}'])
def test_the_steps_of_reading_an_event_grow_with_its_bytes_and_no_faster(part):
    once, twice = (
        steps(lambda times=times: read_event(b'{"data":[' + ",".join([part] * times).encode() + b"]}"))[0]
        for times in (1000, 2000)
    )
    assert twice < 2.2 * once


def test_who_may_not_use_the_machine_sends_a_recipe_at_the_most(space):
    visitors = identities(space)
    body = {"data": ["x" * 2_100_000], "fn_index": 10**6}
    found = {who: visitors[who].ask("POST", "/gradio_api/queue/join", json=body)[0] for who in ("anna", "nobody")}
    assert found == {"anna": 404, "nobody": 413}


def test_no_event_happens_in_a_session_of_annas_but_for_anna(space):
    before, visitors = space.state_of_anna(), identities(space)
    for fn in space.page.fns.values():
        asked = {"fn_index": fn._id, "data": [None] * len(fn.inputs), "session_hash": space.lasting}
        found = [visitors[who].ask("POST", "/gradio_api/queue/join", json=asked)[0] for who in list(visitors)[1:]]
        assert found == [404, 404, 404, 403], fn.api_name
    assert space.state_of_anna() == before


@pytest.mark.parametrize("wanted", ["jobs_pick", "jobs_load", "hear_server"])
def test_what_is_annas_is_shown_to_anna(space, wanted):
    shown = told(space, event(space.page, wanted), profile("anna"))
    assert CANARY in shown if wanted != "hear_server" else "not loaded" in shown


@pytest.mark.parametrize("wanted", ["chat_send", "chat_retry", "chat_edit"])
def test_a_question_that_nobody_answered_leaves_the_talk_and_what_is_typed_as_they_were(space, wanted):
    fn = event(space.page, wanted)
    given = with_annas_names(space, fn)
    talk = next(block for block in given if block.elem_id == "chat-box")
    text = next(block for block in given if block.elem_id == "chat-input")
    shown = {}
    for update in call(fn, given, profile("anna")):
        shown |= update
    assert "not loaded" in str(shown)
    assert shown[talk] == given[talk]
    if wanted == "chat_send":
        assert shown[text]["text"] == "Hello?"
    else:
        assert text not in shown


def test_a_model_that_two_have_loaded_is_unloaded_by_neither(space, monkeypatch):
    studio = space.studio
    model = studio.result(space.key, "id-of-anna")
    stopped = []
    monkeypatch.setattr(studio.servers, "status", lambda folder: ServerStatus(state="ready"))
    monkeypatch.setattr(studio.servers, "stop", stopped.append)
    studio.join(model.folder, "id-of-anna")
    studio.join(model.folder, "id-of-ben")
    with pytest.raises(JobError, match="Another visitor has loaded it too"):
        studio.unload(model, "id-of-anna")
    assert not stopped
    studio.talking.clear()
    studio.join(model.folder, "id-of-anna")
    studio.unload(model, "id-of-anna")
    assert stopped == [model.folder]
