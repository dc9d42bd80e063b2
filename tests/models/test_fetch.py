"""A model is downloaded whole, verified and sealed, or not at all; and only for who may have it."""

from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.artifact import MANIFEST
from backend.artifacts.sealing import verify
from backend.errors import HardwareError, HubError, LoginError, SpecError
from backend.hub import client
from backend.hub.transfer import check_disk
from backend.models.fetch import fetch_model, fetch_tokenizer
from backend.progress import Report, silent
from tests.support.loopback_hub import LoopbackHub
from tests.support.paper_models import paper_model, sharded, write


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS", (0.01, 0.01))


def downloaded(hub: LoopbackHub) -> list[str]:
    return [r.path.rpartition("/")[2] for r in hub.requests if r.method == "GET" and "/resolve/" in r.path]


def test_a_model_is_sealed_byte_for_byte_with_its_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    model = sharded(paper_model(LICENSE="MIT"))
    commit = hub.add_model("acme/tiny", {**model, "training_args.bin": b"x", "onnx/model.onnx": b"x"})
    events: list[dict[str, Any]] = []
    folder = fetch_model("acme/tiny", commit, tmp_path, None, Report(events.append))
    assert folder == tmp_path / "acme--tiny" / commit
    artifact = verify(folder)
    assert (artifact.kind, artifact.stage, artifact.base_model, artifact.revision) == (
        "model",
        "fetch",
        "acme/tiny",
        commit,
    )
    assert set(artifact.files) == set(model)
    for name, content in model.items():
        assert (folder / name).read_bytes() == (content.encode() if isinstance(content, str) else content)
    total = sum(len(content) for content in model.values())
    assert [(e["done"], e["total"], e["unit"]) for e in events if e["event"] == "progress"][-1] == (
        total,
        total,
        "bytes",
    )


def test_a_sealed_model_is_not_fetched_again_but_access_is_asked_for(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_model("acme/gated", paper_model(), gated=True)
    hub.add_token("hf_in", "friend")
    hub.add_token("hf_out", "stranger")
    hub.grant("acme/gated", "friend")
    folder = fetch_model("acme/gated", commit, tmp_path, "hf_in", silent())
    hub.requests.clear()
    assert fetch_model("acme/gated", commit, tmp_path, "hf_in", silent()) == folder
    assert downloaded(hub) == []
    with pytest.raises(HubError, match="not been granted"):
        fetch_model("acme/gated", commit, tmp_path, "hf_out", silent())
    with pytest.raises(LoginError, match="not signed in"):
        fetch_model("acme/gated", commit, tmp_path, None, silent())
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_in" in p.read_bytes()]


def test_a_broken_download_goes_on_from_the_files_that_are_there(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_model("acme/tiny", sharded(paper_model()))
    hub.fail("GET */model-00002-of-00003.safetensors", 404, times=-1)
    with pytest.raises(HubError):
        fetch_model("acme/tiny", commit, tmp_path, None, silent())
    assert not (tmp_path / "acme--tiny" / commit).exists()
    hub.faults.clear()
    hub.requests.clear()
    assert verify(fetch_model("acme/tiny", commit, tmp_path, None, silent()))
    assert "model-00001-of-00003.safetensors" not in downloaded(hub)
    assert "model-00002-of-00003.safetensors" in downloaded(hub)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_fetched_once_more_and_then_refused(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    flip = lambda body: body[:-1] + bytes([body[-1] ^ 1])  # noqa: E731
    hub.fail(f"GET */{name}", flip, times=1)
    assert verify(fetch_model("acme/tiny", commit, tmp_path / "once", None, silent()))
    hub.fail(f"GET */{name}", flip, times=-1)
    with pytest.raises(HubError, match=rf"'{name}' of 'acme/tiny' came damaged twice: [0-9a-f]{{12}}… instead"):
        fetch_model("acme/tiny", commit, tmp_path / "twice", None, silent())
    assert not (tmp_path / "twice" / "acme--tiny" / commit).exists()


def test_a_connection_that_drops_in_a_file_is_taken_up_at_the_byte(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    hub.fail("GET *resolve*/model.safetensors", "truncate", times=5)
    assert verify(fetch_model("acme/tiny", commit, tmp_path, None, silent()))
    starts = [int(r.headers["range"][6:].split("-")[0]) for r in hub.requests if r.path.endswith("model.safetensors")]
    assert len(starts) == 6
    assert sorted(set(starts)) == starts


def test_a_killed_download_goes_on_at_the_byte(hub: LoopbackHub, tmp_path: Path) -> None:
    model = paper_model()
    commit = hub.add_model("acme/tiny", model)
    left = tmp_path / "acme--tiny" / f"{commit}.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(bytes(model["model.safetensors"])[:1000])  # type: ignore[arg-type]
    (left / "README.md").write_bytes(b"longer than what the Hub has" * 100)
    assert verify(fetch_model("acme/tiny", commit, tmp_path, None, silent()))
    asked = next(r for r in hub.requests if r.path.endswith("model.safetensors"))
    assert asked.headers["range"].startswith("bytes=1000-")


def test_a_hub_that_stops_sending_is_an_error(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    hub.fail("GET *resolve*/model.safetensors", lambda body: b"", times=-1)
    with pytest.raises(HubError, match=r"sends no more of 'model\.safetensors'"):
        fetch_model("acme/tiny", commit, tmp_path, None, silent())


def test_a_hostile_repo_is_refused_before_a_byte_of_its_weights(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_model("evil/x", paper_model({"auto_map": {"AutoModel": "x.X"}, "model_type": "own"}))
    with pytest.raises(SpecError, match="auto_map"):
        fetch_model("evil/x", commit, tmp_path, None, silent())
    assert downloaded(hub) == ["config.json"]
    assert not [p for p in tmp_path.rglob("*") if p.name != f"{commit}.lock" and p.is_file()]


def test_weights_whose_header_lies_are_not_sealed(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = bytes(paper_model()["model.safetensors"])  # type: ignore[arg-type]
    commit = hub.add_model("acme/tiny", paper_model(model__safetensors=weights + b"\0" * 8))
    with pytest.raises(SpecError, match=r"'model\.safetensors' has"):
        fetch_model("acme/tiny", commit, tmp_path, None, silent())
    assert not (tmp_path / "acme--tiny" / commit).exists()


def test_only_the_pinned_commit_is_read(hub: LoopbackHub, tmp_path: Path) -> None:
    first = hub.add_model("acme/tiny", paper_model(LICENSE="old"))
    hub.add_model("acme/tiny", paper_model(LICENSE="new"))
    folder = fetch_model("acme/tiny", first, tmp_path, None, silent())
    assert (folder / "LICENSE").read_text() == "old"
    assert all(first in r.path for r in hub.requests if "auth-check" not in r.path)


@pytest.mark.parametrize("damaged", [MANIFEST, "config.json", "model-00002-of-00003.safetensors"])
def test_of_a_damaged_sealed_model_only_what_is_damaged_is_fetched_again(
    damaged: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    commit = hub.add_model("acme/tiny", sharded(paper_model()))
    folder = fetch_model("acme/tiny", commit, tmp_path, None, silent())
    (folder / damaged).write_bytes((folder / damaged).read_bytes()[:40])
    hub.requests.clear()
    assert verify(fetch_model("acme/tiny", commit, tmp_path, None, silent()))
    assert {name for name in downloaded(hub) if name.endswith(".safetensors")} == {damaged} - {MANIFEST, "config.json"}
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [commit]


def test_a_disk_that_is_too_small_is_refused_with_the_figures(tmp_path: Path) -> None:
    with pytest.raises(HardwareError) as refusal:
        check_disk(tmp_path, 10**18, "download 'acme/tiny'")
    assert str(refusal.value).startswith("Could not download 'acme/tiny'. It needs 1010000000.00 GB and ")
    assert str(tmp_path) not in str(refusal.value)


def test_a_disk_that_becomes_full_is_said_so(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    left = tmp_path / "acme--tiny" / f"{commit}.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(HardwareError, match="disk became full"):
        fetch_model("acme/tiny", commit, tmp_path, None, silent())


def test_a_local_folder_is_checked_and_left_where_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", paper_model())
    assert fetch_model(str(folder), None, tmp_path / "models", None, silent()) == folder
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SpecError, match="git lfs pull"):
        fetch_model(str(folder), None, tmp_path / "models", None, silent())


def test_a_tokenizer_comes_without_weights_and_passes_the_same_checks(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    folder = fetch_tokenizer("acme/tiny", commit, tmp_path, None, silent())
    assert "model.safetensors" not in downloaded(hub)
    assert {path.name for path in folder.iterdir()} == {*paper_model(), MANIFEST} - {"model.safetensors"}
    hub.requests.clear()
    assert fetch_tokenizer("acme/tiny", commit, tmp_path, None, silent()) == folder
    whole = fetch_model("acme/tiny", commit, tmp_path, None, silent())
    assert fetch_tokenizer("acme/tiny", commit, tmp_path, None, silent()) == whole != folder
    for name, content, words in (
        ("tokenizer.json", '{"a": 1, "a": 2}', "twice"),
        ("tokenizer_config.json", '{"deep": {"auto_map": {"AutoTokenizer": ["x.Y", null]}}}', "auto_map"),
    ):
        commit = hub.add_model("acme/evil", {**paper_model(), name: content})
        with pytest.raises(SpecError, match=words):
            fetch_tokenizer("acme/evil", commit, tmp_path, None, silent())
        assert not (tmp_path / "acme--evil" / f"{commit}-tokenizer").exists()
