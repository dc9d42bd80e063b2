"""Every event of the page, with every name of Anna's that it can be given, as Anna, Ben, Carl and nobody.

An event that is not in the table here fails: whoever adds one says whom its handler asks for.
"""

import json

import gradio as gr
import pytest

from backend.errors import JobError
from backend.models.demo import demo_facts
from backend.serve.server import ServerStatus
from tests.support.doors import DUPLICATE, SIGN_IN
from tests.support.house import CANARY, call, event, identities, name, profile, space_of_anna
from tests.support.steps import steps
from ui.doors import Doors
from ui.said import read_event

space = pytest.fixture(scope="module")(space_of_anna)

# Event: whom its handler asks for. FREE: nobody, it touches nothing of anybody's; MINE: it shows what is the visitor's,
# which is nothing to a stranger; OWNER: who has signed in; MEMBER: who may run jobs here; BROWSER: it has no handler.
FREE, MINE, OWNER, MEMBER, BROWSER = "free", "mine", "owner", "member", "browser"
EVENTS = {
    FREE: """
deploy-refuse.click hidden,
start-keep-chatting.click hidden, job-keep-chatting.click hidden, publish-keep-chatting.click hidden,
data-source.input choose, data-upload.upload <lambda>, tuning.input begin, merging.input switch,
then wire_chat_tab.<lambda>, then _wire_talk.<lambda>, then _cleared, then list, then standing,
then Workbench.refresh, then Workbench.changed, change Workbench.refresh,
chat-stop.click <lambda>, chat-clear.click <lambda>, compare-stop.click <lambda>, compare-vote.input vote,
publish-where.input choose, publish-folder.blur <lambda>, tuning-door.click <lambda>, variant-add.click keep,
model-find.click look, model-hits.input pick, model-merge.click merge, model-demo.click choose_demo,
model-revision.submit again, recipe-apply.click apply, load _wire_load.load_recipe,
load LoginButton._check_login_status,
data-source.input changed, method.input suit, tuning-preset.input take, data-tune.click begin,
rows-source.input begin, rows-upload.upload begin, calibration-source.input begin, calibration-upload.upload begin
""",
    MINE: """
job-list.input pick, select wire_chat_tab.enter, select wire_publish_tab.enter, select _wire_rows.enter,
hear-rows.click tick, hear-calibration.click tick, hear-jobs.click look, model-facts.change again,
change _wire_rows.tick,
load _wire_load.load_jobs, publish-artifact.change offer
""",
    OWNER: """
job-keep.click keep, job-cancel.click cancel, job-delete.click delete, chat-artifact.input look,
hear-server.click look, hear-training.click train, hear-log.click read, hear-publications.click follow,
then wire_chat_tab.look, chat-unload.click unload, publish-artifact.input pick,
publish-repo.change edit,
job-merge.click to_merge, job-publish.click to_publish, deploy-ask.click ask, deploy-agree.click agree
""",
    MEMBER: """
start.click start, start-unload.click unload, job-retry.click retry, job-unload.click unload, job-chat.click to_chat,
chat-start.click load, chat-install.click install, chat-send.click ask, chat-box.retry retry, chat-box.edit edit,
compare-ask.click ask, compare-file.upload many, publish-start.click start, publish-unload.click unload,
rows-look.click look, calibration-look.click look, then _wire_rows.look
""",
    BROWSER: """
sign-in.click -, chat-stop.click -, chat-clear.click -, chat-save.click -, compare-stop.click -, compare-save.click -,
publish-start.click -, model-find.click -, .load -
""",
}
KINDS = {event.strip(): kind for kind, events in EVENTS.items() for event in events.split(",")}


def with_annas_names(house, fn):
    """Give an event's inputs with every name of Anna's that it could be given, as though Gradio let them through."""
    page, text = house.page, {"recipe-yaml": "base_model: demo", "model-hits": "demo", "chat-input": "Hello?"}
    ticks = [fn for fn in page.fns.values() if name(page, fn) == "hear-rows.click tick"]
    states = {event(page, "job-keep.click keep").inputs[0]: house.done} | {fn.inputs[0]: house.preview for fn in ticks}
    states[event(page, "then standing").inputs[1]] = demo_facts()
    states[next(block for block in event(page, "model-merge.click merge").inputs if block.value is None
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
    """Give everything that a handler answers somebody, its refusal too."""
    try:
        return str(call(fn, with_annas_names(house, fn), who))
    except gr.Error as e:
        return str(e)


def events(kind):
    return [event for event, known in KINDS.items() if known == kind]


def test_every_event_is_in_the_table_and_the_table_holds_no_other(space):
    fns = space.page.fns.values()
    assert {name(space.page, fn) for fn in fns} == set(KINDS)
    assert {name(space.page, fn) for fn in fns if fn.fn is None} == set(events(BROWSER))


@pytest.mark.parametrize("wanted", [event for event in KINDS if event not in events(BROWSER)])
def test_an_event_asks_whose_things_it_is_given(space, wanted):
    before = space.state_of_anna()
    for fn in [fn for fn in space.page.fns.values() if name(space.page, fn) == wanted]:
        heard = {user: told(space, fn, profile(user)) for user in ("ben", "carl")}
        heard["nobody"] = told(space, fn, None)
        assert not [who for who, words in heard.items() if CANARY in words]
        if KINDS[wanted] in (OWNER, MEMBER):
            assert SIGN_IN in heard["nobody"]
            assert (DUPLICATE in heard["carl"]) is (KINDS[wanted] == MEMBER)
            assert DUPLICATE not in heard["ben"]
    assert space.state_of_anna() == before


@pytest.mark.parametrize("wanted", ["chat-install.click install", "job-merge.click to_merge"])
def test_what_changes_the_machine_is_refused_on_a_space_though_a_member_asks(space, wanted):
    for user in ("anna", "ben"):
        assert "own machine alone" in told(space, event(space.page, wanted), profile(user))
    assert not space.studio.installations["vllm"].installs


def test_no_event_tells_a_stranger_what_lies_where_on_the_machine(space, tmp_path):
    there, absent = tmp_path / "rows.jsonl", tmp_path / "none.jsonl"
    there.write_text("{}")
    keep = event(space.page, "variant-add.click keep")
    heard = []
    for path in (there, absent):
        given = with_annas_names(space, keep)
        variants = next(block for block in given if block.elem_id == "variants")
        given[variants] = [json.dumps({"method": "gptq", "calibration": str(path)})]
        heard.append(str(call(keep, given, None)).replace(str(path), "PATH"))
    assert heard[0] == heard[1]
    folder = next(fn for fn in space.page.fns.values() if name(space.page, fn) == "publish-folder.blur <lambda>")
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
    doors = Doors(None, space.studio.settings, None, lambda event: None, lambda who: ())
    before = len(doors._belongings._sessions)
    said = json.dumps(body)
    assert identities(space)["anna"].ask("POST", "/gradio_api/queue/join", content=said)[0] in (400, 404, 413)
    assert len(doors._belongings._sessions) == before


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
        assert found == [404, 404, 404, 403], name(space.page, fn)
    assert space.state_of_anna() == before


@pytest.mark.parametrize("wanted", ["job-list.input pick", "load _wire_load.load_jobs", "hear-server.click look"])
def test_what_is_annas_is_shown_to_anna(space, wanted):
    shown = told(space, event(space.page, wanted), profile("anna"))
    assert CANARY in shown if wanted != "hear-server.click look" else "not loaded" in shown


@pytest.mark.parametrize("wanted", ["chat-send.click ask", "chat-box.retry retry", "chat-box.edit edit"])
def test_a_question_that_nobody_answered_goes_back_where_it_was_typed(space, wanted):
    fn = event(space.page, wanted)
    given = with_annas_names(space, fn)
    talk = next(block for block in given if block.elem_id == "chat-box")
    text = next(block for block in given if block.elem_id == "chat-input")
    shown = {}
    for update in call(fn, given, profile("anna")):
        shown |= update
    assert "not loaded" in str(shown)
    assert shown[talk] == (given[talk] if wanted == "chat-send.click ask" else [])
    assert shown[text] == ("hello" if wanted == "chat-box.edit edit" else "Hello?")


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
