"""Text from a data set: the right config and split, joined by blank lines, and named with its commit."""

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backend.data.examine import load
from backend.data.fetch import fetch_dataset, pin
from backend.data.options import DatasetOptions
from backend.errors import HubError, SpecError
from backend.hub import client, datasets, first_rows, texts
from backend.hub.texts import fetch_text
from backend.options import parse
from backend.progress import silent
from tests.support.loopback_hub import LoopbackHub


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


ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(6)]
TRAIN = parquet(prompt=["q1", "q2"], completion=["a1", "a2"])


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def prompts(folder: Path, **given: Any) -> list[str]:
    options = parse(DatasetOptions, given)
    sources = fetch_dataset(options, folder, None, silent())
    return [sample.messages[0].content for sample in load(sources.train, options, sources.validation).train()]


@pytest.mark.parametrize(
    "files",
    [
        {"data/train-00000-of-00002.parquet": TRAIN, "data/train-00001-of-00002.parquet": TRAIN, "README.md": "# Rows"},
        {"train.jsonl": lines(*ROWS[1:3]) * 2, "LICENSE.txt": "Do good.", "dataset_infos.json": "{}"},
        {"train.csv": "prompt,completion\n" + "q1,a1\nq2,a2\n" * 2, "test.csv": "prompt,completion\nx,y\n"},
        {"rows.json": json.dumps(ROWS[1:3] * 2)},
        {"train.jsonl.gz": gzip.compress((lines(*ROWS[1:3]) * 2).encode())},
    ],
)
def test_rows_of_every_format_are_read_from_the_hub(hub: LoopbackHub, tmp_path: Path, files: dict[str, Any]) -> None:
    commit = hub.add_dataset("me/rows", files)
    assert prompts(tmp_path, dataset="me/rows") == ["q1", "q2", "q1", "q2"]
    name = fetch_dataset(DatasetOptions(dataset="me/rows"), tmp_path, None, silent()).train.name
    assert name == f"me/rows (default, train, commit {commit[:7]})"


def test_the_revision_is_the_one_that_was_asked_for(hub: LoopbackHub, tmp_path: Path) -> None:
    first = hub.add_dataset("me/rows", {"train.jsonl": lines(*ROWS[:2])})
    hub.add_dataset("me/rows", {"train.jsonl": lines(*ROWS[2:4])})
    assert prompts(tmp_path / "old", dataset="me/rows", revision=first) == ["q0", "q1"]
    assert prompts(tmp_path / "new", dataset="me/rows") == ["q2", "q3"]
    pinned = pin(DatasetOptions(dataset="me/rows"), None)
    hub.add_dataset("me/rows", {"train.jsonl": lines(*ROWS[4:])})
    source = fetch_dataset(pinned, tmp_path / "pinned", None, silent()).train
    assert (source.repo_id, source.revision) == ("me/rows", pinned.revision)
    assert source.files[0].read_text() == lines(*ROWS[2:4])
    with pytest.raises(HubError, match="no such revision"):
        prompts(tmp_path, dataset="me/rows", revision="nope")


def test_a_slice_and_a_validation_split_are_taken(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_dataset("me/rows", {"train.jsonl": lines(*ROWS[:4]), "test.jsonl": lines(*ROWS[3:])})
    assert prompts(tmp_path / "a", dataset="me/rows", split="train[1:3]") == ["q1", "q2"]
    options = DatasetOptions(dataset="me/rows", split="train[:3]", validation_split="test[-1:]", allow_identical=True)
    sources = fetch_dataset(options, tmp_path / "b", None, silent())
    read = load(sources.train, options, sources.validation)
    assert [sample.messages[0].content for sample in read.validation()] == ["q5"]
    assert read.examination.train == 3
    with pytest.raises(SpecError, match="1 of 3 validation rows are also trained on"):
        prompts(tmp_path / "c", dataset="me/rows", validation_split="test")


def test_several_configs_or_only_a_test_split_are_asked_about(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_dataset("me/many", {"en/train.jsonl": lines(*ROWS), "de/train.jsonl": lines(*ROWS[:2])})
    with pytest.raises(SpecError, match="has several configs: set config to one of 'de', 'en'") as refusal:
        prompts(tmp_path, dataset="me/many")
    assert "config" in refusal.value.faults
    assert prompts(tmp_path, dataset="me/many", config="de") == ["q0", "q1"]
    hub.add_dataset("me/tests", {"test.jsonl": lines(*ROWS[:2])})
    with pytest.raises(SpecError, match="has only the split 'test': set split to 'test'") as refusal:
        prompts(tmp_path, dataset="me/tests")
    assert "split" in refusal.value.faults
    assert prompts(tmp_path, dataset="me/tests", split="test") == ["q0", "q1"]
    with pytest.raises(SpecError, match="has no split 'train': set split to 'test'"):
        prompts(tmp_path, dataset="me/tests", split="train[:2]")


def test_a_script_is_never_run_and_its_parquet_branch_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_dataset("me/script", {"script.py": "raise SystemExit"})
    with pytest.raises(SpecError, match=r"only a loading script, 'script\.py', .* ask its author"):
        prompts(tmp_path, dataset="me/script")
    files = {"default/train_sft/0000.parquet": TRAIN, "default/train_gen/0000.parquet": TRAIN}
    commit = hub.add_dataset("me/script", files)
    hub.add_dataset("me/script", {"script.py": "raise SystemExit"})
    hub.tag("me/script", "refs/convert/parquet", commit, "datasets")
    with pytest.raises(SpecError, match="set revision to refs/convert/parquet, where the Hub keeps its rows"):
        prompts(tmp_path, dataset="me/script")
    with pytest.raises(SpecError, match="several splits: set split to 'train_gen', 'train_sft'"):
        prompts(tmp_path, dataset="me/script", revision="refs/convert/parquet")
    found = prompts(tmp_path, dataset="me/script", revision="refs/convert/parquet", split="train_sft")
    assert found == ["q1", "q2"]


def test_too_much_is_refused_unless_a_part_will_do(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_dataset("me/rows", {f"train-{i}.jsonl": lines(*ROWS[2 * i : 2 * i + 2]) for i in range(3)})
    monkeypatch.setattr(datasets, "MAX_ROWS_DOWNLOAD", 100)
    with pytest.raises(SpecError, match=r"take a part, such as train\[:10000\], in split"):
        prompts(tmp_path, dataset="me/rows")
    assert prompts(tmp_path, dataset="me/rows", split="train[:2]") == ["q0", "q1"]


def test_files_and_the_demo_have_no_splits(tmp_path: Path) -> None:
    assert len(prompts(tmp_path, dataset="demo", split="train[:7]")) == 7
    with pytest.raises(SpecError, match=r"'demo' has no splits: give a part of its rows alone, such as \[:200\]"):
        prompts(tmp_path, dataset="demo", split="test")


C4 = [{"text": f"Sentence number {i} of the crawl.", "url": f"http://x/{i}"} for i in range(600)]
C4_CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: realnewslike
  data_files:
  - split: train
    path: realnewslike/c4-train.*.json.gz
---
"""


def c4() -> dict[str, Any]:
    """Return C4 as the Hub has it: packed JSON lines in a folder of each config."""
    part = {i: gzip.compress(lines(*C4[200 * i : 200 * i + 200]).encode()) for i in range(3)}
    files = {f"en/c4-train.{i:05d}-of-01024.json.gz": data for i, data in part.items()}
    files |= {
        "en/c4-validation.00000-of-00008.json.gz": part[0],
        "realnewslike/c4-train.00000-of-00512.json.gz": part[2],
    }
    return {**files, "README.md": C4_CARD, "c4.py": "raise SystemExit"}


def texts_of(folder: Path, **given: Any) -> list[str]:
    options = parse(DatasetOptions, {"text_column": "text", **given})
    return [sample.text for sample in load(fetch_dataset(options, folder, None, silent()).train, options).train()]


def asked_for(hub: LoopbackHub) -> list[str]:
    return [r.path.rpartition("/")[2] for r in hub.requests if "/resolve/" in r.path]


@pytest.mark.parametrize(("split", "files"), [("train[:50]", 1), ("train[150:250]", 2), ("train[:201]", 2)])
def test_the_first_rows_come_without_the_files_after_them(
    hub: LoopbackHub, tmp_path: Path, split: str, files: int
) -> None:
    hub.add_dataset("allenai/c4", c4())
    found = texts_of(tmp_path, dataset="allenai/c4", config="en", split=split)
    first, _, last = split[6:-1].partition(":")
    assert found == [row["text"] for row in C4[int(first or 0) : int(last)]]
    assert asked_for(hub) == [f"c4-train.{i:05d}-of-01024.json.gz" for i in range(files)]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json.gz", "train.JSONL.gz"])
def test_of_a_large_file_of_lines_only_the_beginning_comes(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = lines(*({"text": f"{i} " + random.randbytes(400).hex()} for i in range(20_000))).encode()
    hub.add_dataset("me/large", {name: gzip.compress(content, 1) if name.endswith("gz") else content})
    monkeypatch.setattr(first_rows, "WHOLE", 100_000)
    monkeypatch.setattr(datasets, "MAX_ROWS_DOWNLOAD", 1_000_000)
    found = texts_of(tmp_path, dataset="me/large", split="train[2:40]")
    assert found == [json.loads(line)["text"] for line in content.splitlines()[2:40]]
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [b"".join(content.splitlines(keepends=True)[:40])]


def test_large_json_that_is_not_made_of_lines_comes_whole(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_rows, "WHOLE", 100)
    hub.add_dataset("me/array", {"train.json": json.dumps(ROWS, indent=1)})
    assert prompts(tmp_path, dataset="me/array", split="train[:3]") == ["q0", "q1", "q2"]


def test_parquet_is_fetched_file_by_file_until_there_are_enough_rows(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_dataset("me/rows", {f"data/train-{i}.parquet": TRAIN for i in range(4)})
    assert prompts(tmp_path, dataset="me/rows", split="train[:3]") == ["q1", "q2", "q1"]
    assert asked_for(hub) == ["train-0.parquet", "train-1.parquet"]
