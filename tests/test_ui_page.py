"""The page: it builds, its handlers turn what is typed into recipes, and its process stays small."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend.errors import HubError
from backend.jobs import estimates
from backend.jobs.specs import Streaming, stage_folder
from backend.jobs.store import JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.models.artifacts import Artifact, now, partial, seal
from backend.models.demo import demo_facts
from backend.recipes import Recipe, parse_recipe
from backend.serve.servers import Servers
from backend.settings import Settings
from ui.data_tab import DATASET, UPLOAD
from ui.errors import shown
from ui.page import build_page, build_parts
from ui.studio import Studio
from ui.users import require_owner, visitor
from ui.workbench import Workbench

ROOT = Path(__file__).parent.parent


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    settings = Settings(data=tmp_path)
    return Studio(settings, Supervisor(settings), Servers(settings))


@pytest.fixture
def bench(studio: Studio) -> Workbench:
    with gr.Blocks():
        return build_parts(studio)


def given(bench: Workbench, **values: Any) -> dict[Any, Any]:
    """What a handler gets from an untouched page with the demo model, and `values` by elem_id."""
    found = {component: getattr(component, "value", None) for component in bench.inputs()}
    found |= {bench.model.facts: demo_facts(), bench.recipe.pasted: None}
    by_id = {component.elem_id: component for component in found}
    return found | {by_id[name]: value for name, value in values.items()}


def test_the_page_builds_and_every_event_is_private(studio: Studio) -> None:
    page = build_page(studio)
    assert {fn.api_visibility for fn in page.fns.values()} == {"private"}
    ids = [c.elem_id for c in page.blocks.values() if c.elem_id]
    assert len(ids) == len(set(ids))


def test_an_untouched_page_can_start(bench: Workbench) -> None:
    updates = bench.refresh(given(bench))
    assert updates[bench.sidebar.start]["interactive"]
    assert "SmolLM2-135M-Instruct" in updates[bench.sidebar.summary]
    assert bench.draft_recipe(given(bench)) == parse_recipe(
        {"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}, {"stage": "evaluate"}]}
    )


def test_what_a_recipe_needs_and_why_it_would_be_refused_stand_before_the_start(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = bench.refresh(given(bench))[bench.sidebar.summary]
    assert all(f"<dt>{name}</dt>" in fits for name in ("Result", "Disk", "Memory", "Time"))
    assert 'class="warn"' not in fits
    monkeypatch.setattr(estimates, "memory_bytes", lambda: 10**9)
    refused = html.unescape(bench.refresh(given(bench))[bench.sidebar.summary])
    assert re.search(r"'evaluate' needs 1\.\d\d GB of memory and this machine has 1\.00 GB", refused)


def test_a_cast_is_called_one_and_one_window_is_one(bench: Workbench) -> None:
    updates = bench.refresh(given(bench, **{"method": "cast", "evaluate-num_samples": 1}))
    assert "Cast to bfloat16" in updates[bench.sidebar.summary]
    assert "1 window of" in updates[bench.sidebar.summary]


def test_a_wrong_value_is_shown_in_words_beside_its_field_and_start_waits(bench: Workbench) -> None:
    typed = given(bench, **{"method": "int8", "quantize-int8-llm_int8_threshold": -3, "evaluate-num_samples": 0})
    updates = bench.refresh(typed)
    assert not updates[bench.sidebar.start]["interactive"]
    assert "at least 0" in updates[bench.recipe.forms["int8"].fields["llm_int8_threshold"]]["info"]
    assert "at least 1" in updates[bench.data.form.fields["num_samples"]]["info"]
    assert "Threshold" in updates[bench.sidebar.summary]


def test_a_pasted_recipe_fills_the_forms_and_gives_itself_back(bench: Workbench) -> None:
    wanted = parse_recipe(
        {
            "base_model": "demo",
            "stages": [
                {"stage": "quantize", "method": "fp4", "bnb_4bit_use_double_quant": False},
                {"stage": "evaluate", "dataset": "me/texts", "num_samples": 3, "max_seq_length": 512},
            ],
        }
    )
    pasted = given(bench, **{"recipe-yaml": wanted.to_yaml()})
    filled = bench.apply(pasted, None)
    assert bench.draft_recipe(pasted | values(filled)) == wanted


def test_a_recipe_that_says_more_than_the_forms_is_used_as_it_stands(bench: Workbench) -> None:
    wanted = parse_recipe(
        {"base_model": "demo", "stages": [{"stage": "quantize", "method": m} for m in ("nf4", "int8")]}
    )
    pasted = given(bench, **{"recipe-yaml": wanted.to_yaml()})
    filled = bench.apply(pasted, None)
    assert "more than the forms" in filled[bench.recipe.note]
    assert bench.draft_recipe(pasted | values(filled)) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: [", "not YAML"),
        ("base_model: demo\nstages:\n- {stage: quantize, method: nf5}", "must be one of"),
        ("base_model: /etc\nstages:\n- {stage: quantize, method: nf4}", "is a path"),
        ("just words", "mapping"),
    ],
)
def test_a_pasted_recipe_that_is_none_says_why(bench: Workbench, text: str, words: str) -> None:
    handler = shown(bench.recipe.note)(bench.apply)
    updates = handler(given(bench, **{"recipe-yaml": text}), None)
    assert words in updates[bench.recipe.note]
    assert list(updates) == [bench.recipe.note]


def test_a_source_without_its_data_is_named(bench: Workbench) -> None:
    assert "data set" in bench.refresh(given(bench, **{"data-source": DATASET}))[bench.sidebar.summary]
    assert "upload" in bench.refresh(given(bench, **{"data-source": UPLOAD}))[bench.sidebar.summary]


def test_an_upload_is_kept_where_a_later_job_can_read_it(bench: Workbench, tmp_path: Path) -> None:
    upload = tmp_path / "gradio" / "words.txt"
    upload.parent.mkdir()
    upload.write_text("once upon a time")
    typed = given(bench, **{"data-source": UPLOAD, "data-upload": str(upload)})
    recipe = bench.stored_recipe(typed)
    kept = Path(recipe.stages[1].text)
    upload.unlink()
    assert kept.read_text() == "once upon a time"
    assert kept.is_relative_to(tmp_path / "uploads")


def test_the_browser_remembers_no_path_and_no_token(bench: Workbench, tmp_path: Path) -> None:
    upload = tmp_path / "words.txt"
    upload.write_text("once")
    typed = given(bench, **{"data-source": UPLOAD, "data-upload": str(upload), "publish-token": "hf_secret"})
    updates = bench.refresh(typed)
    assert str(tmp_path) not in str(updates[bench.remembered])
    assert "hf_secret" not in str(updates)
    assert isinstance(parse_recipe(updates[bench.remembered]["recipe"]), Recipe)


def test_after_a_reload_an_upload_is_asked_for_again_and_nothing_starts_on_another_text(
    bench: Workbench, tmp_path: Path
) -> None:
    upload = tmp_path / "words.txt"
    upload.write_text("once")
    before = bench.refresh(given(bench, **{"data-source": UPLOAD, "data-upload": str(upload)}))
    filled = bench.remember(before[bench.remembered], None)
    assert "'words.txt'" in html.unescape(filled[bench.data.note])
    assert set(filled) <= set(bench.filled())
    after = bench.refresh(given(bench) | values(filled))
    assert not after[bench.sidebar.start]["interactive"]


def test_on_a_space_the_owner_is_the_accounts_id_and_strangers_are_told_to_sign_in(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert require_owner(studio.settings, None) == "local"
    monkeypatch.setenv("SPACE_ID", "me/studio")
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    assert visitor(studio.settings, None) is None
    with pytest.raises(Exception, match="sign in with Hugging Face"):
        require_owner(studio.settings, None)
    profile = gr.OAuthProfile(
        {"sub": "42", "name": "Me", "preferred_username": "me", "profile": "https://x", "picture": "https://x"}
    )
    assert require_owner(studio.settings, profile) == "42"


def test_a_name_alone_is_a_folder_of_the_data_folder(bench: Workbench, tmp_path: Path) -> None:
    assert bench.publish.place(" mine ") == tmp_path / "published" / "mine"
    assert bench.publish.place("/srv/mine") == Path("/srv/mine")


def test_a_job_of_another_owner_is_not_shown(studio: Studio, bench: Workbench) -> None:
    store = Store(studio.settings.data / "jobs.sqlite")
    recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "cast"}]})
    job_id = store.add(recipe, "anna")
    store.finish(job_id, JobState.CANCELED)
    store.close()
    studio.supervisor.start()
    try:
        mine, others = bench.jobs.show("anna", job_id), bench.jobs.show("ben", job_id)
        assert "SmolLM2" in mine[bench.jobs.view]
        assert "SmolLM2" not in str(others)
    finally:
        studio.supervisor.stop()


def test_a_job_from_repo_to_repo_shows_where_it_went_and_offers_no_chat(studio: Studio, bench: Workbench) -> None:
    store = Store(studio.settings.data / "jobs.sqlite")
    stage, publish = {"stage": "quantize", "method": "nf4"}, {"repo_id": "anna/new"}
    recipe = parse_recipe({"base_model": "acme/tiny", "stages": [stage], "publish": publish})
    spec = Streaming(recipe=recipe)
    job_id = store.add(spec, "anna")
    store.finish(job_id, JobState.COMPLETED)
    store.close()
    target = stage_folder(studio.settings.jobs / job_id, spec, 0)
    draft = partial(target)
    (draft / "published.json").write_text(json.dumps([{"location": "https://hf.co/anna/new", "verified": True}]))
    seal(draft, target, Artifact(kind="published", stage="stream", created=now()))
    studio.supervisor.start()
    try:
        shown_ = bench.jobs.show("anna", job_id)
        assert "Quantize to NF4 · tiny" in shown_[bench.jobs.view]
        assert 'href="https://hf.co/anna/new"' in shown_[bench.jobs.result]["value"]
        assert not shown_[bench.jobs.chat]["visible"]
        assert not shown_[bench.jobs.publish]["visible"]
        assert studio.results("anna") == []
    finally:
        studio.supervisor.stop()


def test_the_web_process_imports_no_heavy_library() -> None:
    code = (
        "import sys, app, pathlib, tempfile\n"
        "from backend.settings import Settings\n"
        "s = Settings(data=pathlib.Path(tempfile.mkdtemp()))\n"
        "app.web_app(app.Studio(s, app.Supervisor(s), app.Servers(s)))\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'bitsandbytes') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_foreign_text_appears_literally() -> None:
    def handler() -> None:
        raise HubError("Could not find '<img src=x>' on the Hub.")

    with pytest.raises(gr.Error, match="&lt;img src=x&gt;"):
        shown()(handler)()


def values(updates: dict[Any, Any]) -> dict[Any, Any]:
    """The values that updates leave in the page."""
    return {c: u["value"] if isinstance(u, dict) and "__type__" in u else u for c, u in updates.items()
             if not (isinstance(u, dict) and "__type__" in u and "value" not in u)}  # fmt: skip
