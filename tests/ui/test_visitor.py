"""Who asks is worked out once an event, by what wraps its handler, and handed to it."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import gradio as gr
import pytest
from gradio.helpers import special_args

from backend.settings import Settings
from tests.support.house import profile
from ui.visitor import LOCAL, Visitor, handler

ANNA = gr.OAuthToken("hf_anna", "", 0)


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SPACE_ID", "anna/studio")
    settings = Settings(data=tmp_path, members=("anna",))
    assert settings.on_space
    return settings


def asking(settings: Settings, beside: gr.HTML | None = None) -> Any:
    @handler(settings, beside)
    def ask(text: str, who: Visitor) -> tuple[str, str | None, bool, str | None]:
        return text, who.owner, who.may_run, who.token("typed")

    return ask


def test_gradio_is_asked_for_who_has_signed_in_and_never_for_the_visitor(space: Settings) -> None:
    ask = asking(space)
    assert list(inspect.signature(ask).parameters) == ["text", "profile", "oauth"]
    assert get_type_hints(ask) == {"text": str, "profile": gr.OAuthProfile | None, "oauth": gr.OAuthToken | None}
    assert special_args(ask, ["hello"])[0] == ["hello", None, None]


def test_on_a_space_the_visitor_is_who_has_signed_in_with_their_own_token(space: Settings) -> None:
    ask = asking(space)
    assert ask("hello", profile("anna"), ANNA) == ("hello", "id-of-anna", True, "hf_anna")
    assert ask("hello", profile("ben"), None) == ("hello", "id-of-ben", False, None)
    assert ask("hello", None, ANNA) == ("hello", None, False, None)


def test_on_ones_own_machine_the_visitor_is_its_owner_with_the_token_that_was_typed(tmp_path: Path) -> None:
    assert asking(Settings(data=tmp_path))("hello", None, None) == ("hello", LOCAL, True, "typed")


def test_a_handler_that_yields_is_refused_beside_its_field(space: Settings) -> None:
    with gr.Blocks():
        note = gr.HTML()

    @handler(space, note)
    def ask(who: Visitor) -> Iterator[dict[Any, Any]]:
        who.member()
        yield {note: "not reached"}

    assert inspect.isgeneratorfunction(ask)
    [told] = ask(None, None)
    assert "nobody can run jobs" in told[note]
