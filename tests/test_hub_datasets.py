"""Text from a data set: the right config and split, joined by blank lines, and named with its commit."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backend.errors import HubError, SpecError
from backend.hub import client, texts
from backend.hub.texts import fetch_text
from backend.progress import silent
from tests.loopback_hub import LoopbackHub


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS", (0.01, 0.01))


def parquet(**columns: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


WIKITEXT = {
    f"{config}/{split}-00000-of-00001.parquet": parquet(text=[f" = {config} = \n", "", f"{split} ünï\n"])
    for config in ("wikitext-103-v1", "wikitext-2-raw-v1")
    for split in ("test", "train", "validation")
}
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: test
    path: wikitext-2-raw-v1/test-*
  - split: train
    path: wikitext-2-raw-v1/train-*
- config_name: wikitext-103-v1
  data_files:
  - split: test
    path: wikitext-103-v1/test-*
---
"""


@pytest.mark.parametrize("card", [{"README.md": CARD}, {}], ids=["card", "folders"])
def test_wikitext_is_read_as_gptq_reads_it(hub: LoopbackHub, tmp_path: Path, card: dict[str, str]) -> None:
    commit = hub.add_dataset("Salesforce/wikitext", {**WIKITEXT, **card})
    target = tmp_path / "text" / "wikitext.txt"
    name = fetch_text("Salesforce/wikitext:wikitext-2-raw-v1", target, None, silent())
    assert name == f"Salesforce/wikitext (wikitext-2-raw-v1, test, commit {commit[:7]})"
    assert target.read_text(encoding="utf-8") == "\n\n".join([" = wikitext-2-raw-v1 = \n", "", "test ünï\n"])
    assert [p.name for p in target.parent.iterdir()] == ["wikitext.txt"]
    assert "train" in fetch_text("Salesforce/wikitext:wikitext-2-raw-v1:train", target, None, silent())
    assert "train ünï" in target.read_text(encoding="utf-8")


def test_several_configs_are_listed_when_none_is_given(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_dataset("Salesforce/wikitext", WIKITEXT)
    for asked, words in (("", "has several configs"), (":none", "has no config 'none'")):
        with pytest.raises(SpecError, match=words) as refusal:
            fetch_text(f"Salesforce/wikitext{asked}", tmp_path / "t", None, silent())
        assert "'wikitext-103-v1', 'wikitext-2-raw-v1'" in str(refusal.value)
    with pytest.raises(SpecError, match="has no split 'nope'"):
        fetch_text("Salesforce/wikitext:wikitext-103-v1:nope", tmp_path / "t", None, silent())


def test_json_lines_and_plain_text_are_read_too(hub: LoopbackHub, tmp_path: Path) -> None:
    rows = [{"text": "one", "id": 1}, {"text": "two"}, {"id": 3}]
    hub.add_dataset("me/rows", {"data/valid.jsonl": "\n".join(json.dumps(r) for r in rows)})
    hub.add_dataset("me/book", {"book.txt": "A line.\nAnother."})
    assert "(default, validation," in fetch_text("me/rows", tmp_path / "rows", None, silent())
    assert (tmp_path / "rows").read_text() == "one\n\ntwo\n\n"
    assert "(default, train," in fetch_text("me/book", tmp_path / "book", None, silent())
    assert (tmp_path / "book").read_text() == "A line.\nAnother."


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train.parquet": parquet(question=["a"], answer=["b"])}, "only 'question', 'answer'"),
        ({"train.jsonl": '{"n": 1}'}, "only 'n'"),
        ({"train.jsonl": '{"text": "a"}\n{"text'}, "line 2"),
        ({"train.jsonl": "[1]"}, "line 1"),
        ({"train.parquet": b"PAR1 cut off"}, "cannot be read as Parquet"),
        ({"script.py": "raise SystemExit"}, "has only a loading script, 'script.py'"),
    ],
)
def test_a_data_set_without_text_is_refused_in_words(
    hub: LoopbackHub, tmp_path: Path, files: dict[str, Any], words: str
) -> None:
    hub.add_dataset("me/rows", files)
    with pytest.raises(SpecError, match=words) as refusal:
        fetch_text("me/rows", tmp_path / "t", None, silent())
    assert str(tmp_path) not in str(refusal.value)


def test_no_more_than_the_limit_is_downloaded(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_dataset("me/rows", {f"train-{i}.txt": str(i) * 60 for i in range(3)})
    monkeypatch.setattr(texts, "MAX_DOWNLOAD", 130)
    assert "(default, train, first 2 of 3 files," in fetch_text("me/rows", tmp_path / "t", None, silent())
    assert "2" not in (tmp_path / "t").read_text()
    monkeypatch.setattr(texts, "MAX_DOWNLOAD", 50)
    with pytest.raises(SpecError, match="choose another config"):
        fetch_text("me/rows", tmp_path / "t", None, silent())
    monkeypatch.setattr(texts, "MAX_DOWNLOAD", 130)
    monkeypatch.setattr(texts, "MAX_TEXT", 100)
    with pytest.raises(SpecError, match="unpacks to more"):
        fetch_text("me/rows", tmp_path / "t", None, silent())


def test_a_gated_data_set_is_for_who_has_access(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_dataset("acme/gated", {"test.txt": "x"}, gated=True)
    hub.add_token("hf_out", "stranger")
    with pytest.raises(HubError, match="not been granted"):
        fetch_text("acme/gated", tmp_path / "t", "hf_out", silent())


@pytest.mark.parametrize("dataset", ["../x", "http://169.254.169.254", "a b", "x--y", ""])
def test_a_strange_name_is_refused_before_anything_is_sent(hub: LoopbackHub, tmp_path: Path, dataset: str) -> None:
    with pytest.raises(SpecError, match="dataset"):
        fetch_text(dataset, tmp_path / "t", None, silent())
    assert hub.requests == []
