"""Whose tokenizer and chat template a merged model has: the base model's own, unless an adapter brings other tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.__main__ import main
from backend.model_folder import settings_in, template_in
from backend.models.known_tokens import known_tokens
from backend.models.loading import load_tokenizer
from backend.stages.companions import base_in
from tests.support.adapters import TINY, save_adapter

Change = Callable[[Any], object]


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a file of its tokenizer that no library writes again."""
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    (folder / "tekken.json").write_text("{}")
    return folder


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """What saves the base's tokenizer again, changed, where an adapter would lie."""

    def save(change: Change) -> Path:
        tokenizer = load_tokenizer(base)
        change(tokenizer)
        tokenizer.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return save


def padded(tokenizer: Any) -> None:
    tokenizer.padding_side, tokenizer.model_max_length = "left", 64
    tokenizer("x", padding="max_length", truncation=True, max_length=8)


def ended(tokenizer: Any) -> None:
    tokenizer.eos_token = "<pad>"


@pytest.mark.parametrize(
    ("change", "rows", "whose"),
    [
        (lambda t: None, 256, "base"),
        (padded, 256, "base"),
        (lambda t: t.add_tokens(["<tool>"]), 300, "adapter"),
        (lambda t: t.add_special_tokens({"pad_token": "[PAD]"}), 300, "adapter"),
        (ended, 256, "adapter"),
        (lambda t: t.add_special_tokens({"pad_token": "[PAD]"}), 246, "base"),
    ],
    ids=["saved again", "padding of a training", "a token more", "a pad token", "another end", "no embedding"],
)
def test_the_bases_tokenizer_stays_unless_tokens_were_added(
    change: Change, rows: int, whose: str, base: Path, saved: Callable[[Change], Path]
) -> None:
    sources = {"base": base, "adapter": saved(change)}
    if rows == 246:
        rows = len(load_tokenizer(base))  # none for a token more
    known = base_in(base)._replace(adapters=(base_in(sources["adapter"]),), rows=rows)
    copied = known.copied()
    assert copied["tokenizer.json"].folder == sources[whose]
    assert ("tekken.json" in copied) == (whose == "base")
    assert bool(known.lost()) == ("[PAD]" in known_tokens(sources["adapter"]).added and whose == "base")


def test_a_template_of_an_adapter_goes_with_the_tokenizer_of_the_base(
    base: Path, saved: Callable[[Change], Path], tmp_path: Path
) -> None:
    adapter = saved(lambda t: None)
    (adapter / "chat_template.jinja").unlink()
    settings = settings_in(adapter, "tokenizer_config.json") | {"chat_template": "{{ messages[0].content }}"}
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    out.mkdir()
    base_in(base)._replace(adapters=(base_in(adapter),), rows=256).copy(out)
    assert template_in(out) == load_tokenizer(out).chat_template == "{{ messages[0].content }}"
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({"tokenizer.json": {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "x"}]}}, {"a", "x"}),
        ({"tokenizer.json": {"model": {"vocab": [["a", -1.5], ["b", 0]]}}}, {"a", "b"}),
        ({"vocab.json": {"a": 0}, "added_tokens.json": {"<x>": 1}}, {"a", "<x>"}),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"7": {"content": "<x>"}, "9" * 5000: {}}}}, {"<x>"}),
        ({"tokenizer.json": {"model": 3, "added_tokens": [4, {"id": "5"}]}, "vocab.json": {"a": "b"}}, set()),
    ],
    ids=["bpe", "unigram", "older files", "settings alone", "nonsense"],
)  # fmt: skip
def test_tokens_are_read_from_every_form_of_a_tokenizer(
    files: dict[str, object], tokens: set[str], tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = known_tokens(tmp_path)
    assert {*found.vocabulary, *found.added} == tokens


@pytest.mark.real
def test_a_token_without_an_embedding_is_said_at_the_merge_and_the_result_can_be_measured(
    base: Path, saved: Callable[[Change], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    adapter = saved(lambda t: t.add_tokens([*(f"<{number}>" for number in range(10)), "<last>"]))
    out, prose = tmp_path / "out", tmp_path / "prose.txt"
    save_adapter(base, adapter, target_modules=TINY)
    number = known_tokens(adapter).added["<last>"]
    assert number == settings_in(base, "config.json")["vocab_size"]
    assert main(["merge", str(adapter), "--base", str(base), "--output", str(out)]) == 0
    assert f"'<last>' (token {number})" in capsys.readouterr().err
    prose.write_text("The quick brown fox jumps over the lazy dog. " * 30)
    argv = ["evaluate", str(out), "--reference", str(adapter.parent / "base"), "--text", str(prose)]
    assert main([*argv, "--num-samples", "1", "--max-seq-length", "64"]) == 0
