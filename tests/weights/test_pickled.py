"""Models whose weights are pytorch_model.bin: looked at unopened, converted apart, refused where they are more."""

import json
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact, verify
from backend.errors import SpecError
from backend.hub.files import LocalFiles
from backend.models.fetch import PICKLED, fetch_model, fetch_tokenizer
from backend.models.inspection import inspect
from backend.progress import Report, silent
from backend.recipes import Streaming, parse_recipe
from backend.stages.convert import CONVERT_BYTES
from backend.stages.estimate import estimate
from backend.stages.prepare import prepare
from backend.weights.conversion import conversion, convert
from backend.weights.output import Output, Resumable
from backend.weights.pickled import read_pickled
from tests.support.loopback_hub import LoopbackHub

OLD: Mapping[str, Any] = {"_use_new_zipfile_serialization": False}
WAYS: dict[str, Mapping[str, Any]] = {"zip": {}, "old": OLD}


def read(path: Path) -> Any:
    files = LocalFiles(path.parent)
    return read_pickled(lambda start, end: files.read(path.name, start, end), path.stat().st_size, path.name)


def turned(folder: Path, into: Path, shards: int = 1, **how: Any) -> Path:
    """Copy a model with its safetensors as pickled files, as they lie in repos of 2022."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = [(name, t) for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()]
    if shards == 1:
        torch.save(OrderedDict(tensors), into / "pytorch_model.bin", **how)
        return into
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = dict(tensors[i::shards])
        torch.save(part, into / file, **how)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (into / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return into


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def plain() -> dict[str, Any]:
    """Return tensors of every type, cut, turned, shared and empty."""
    torch.manual_seed(0)
    whole = torch.randn(32, 8)
    made = OrderedDict(
        half=torch.randn(3, 4).half(), brain=torch.randn(3, 4).bfloat16(), single=whole, double=torch.randn(2).double(),
        turned=torch.randn(4, 6).T, cut=whole[4:9], same=whole, number=torch.tensor(1.5), empty=torch.zeros(0, 3),
        longs=torch.arange(5), mask=torch.tensor([True, False]), bytes=torch.arange(4, dtype=torch.uint8),
        parameter=torch.nn.Parameter(torch.randn(2, 2)), strided=torch.randn(10)[::3],
    )  # fmt: skip
    made._metadata = OrderedDict([("", {"version": 1})])  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("way", WAYS)
def test_tensors_of_every_kind_become_the_same_ones(tmp_path: Path, way: str) -> None:
    made = plain()
    torch.save(made, tmp_path / "pytorch_model.bin", **WAYS[way])
    held = {"pytorch_model.bin": read(tmp_path / "pytorch_model.bin")}
    assert held["pytorch_model.bin"].aliases == {"same": "single"}
    planned = conversion(held, {"model_type": "llama"})
    target = tmp_path / "made"
    target.mkdir()
    convert(tmp_path, held, planned, Output(target), silent())
    assert {path.name: path.stat().st_size for path in target.iterdir()} == planned.files
    with safe_open(target / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())


def test_an_output_head_that_is_the_embeddings_is_written_once_and_said_in_the_config(tmp_path: Path) -> None:
    shared = torch.randn(8, 4)
    torch.save({"lm_head.weight": shared, "model.embed_tokens.weight": shared}, tmp_path / "x.bin")
    torch.save({"lm_head.weight": shared, "model.embed_tokens.weight": shared.clone()}, tmp_path / "y.bin")
    tied = conversion({"x.bin": read(tmp_path / "x.bin")}, {})
    assert [tensor.name for tensor in tied.tensors] == ["model.embed_tokens.weight"]
    assert json.loads(tied.config)["tie_word_embeddings"] is True
    said_apart = conversion({"x.bin": read(tmp_path / "x.bin")}, {"tie_word_embeddings": False})
    apart = conversion({"y.bin": read(tmp_path / "y.bin")}, {})
    assert len(said_apart.tensors) == len(apart.tensors) == 2


class Runs:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("canary", "w")


ONE = torch.ones(1)
MORE: dict[str, Callable[[], Any]] = {
    "code": lambda: {"a": Runs()},
    "a module": lambda: torch.nn.Linear(2, 2),
    "a list": lambda: [ONE],
    "a number": lambda: {"a": ONE, "epoch": 3},
    "a training's state": lambda: {"model": {"a": ONE}, "optimizer": {"b": ONE}},
    "numbered tensors": lambda: {0: ONE},
    "a tensor blown up": lambda: {"a": ONE.expand(10**9)},
    "a sparse tensor": lambda: {"a": torch.eye(2).to_sparse()},
    "nothing": lambda: {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MORE)
def test_what_is_more_than_plain_tensors_is_refused_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(MORE[kind](), tmp_path / "pytorch_model.bin", **WAYS[way])
    with pytest.raises(SpecError, match=r"^'pytorch_model\.bin' ") as refusal:
        read(tmp_path / "pytorch_model.bin")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
    assert not Path("canary").exists()


DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def repacked(path: Path, change: Callable[[str, bytes], tuple[bytes, int]]) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            content, packing = change(name, data)
            archive.writestr(name, content, packing)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "packed records": lambda p: repacked(p, lambda n, d: (d * 10_000 if "/data/" in n else d, DEFLATED)),
    "records that are too short": lambda p: repacked(p, lambda n, d: (d[:-4] if "/data/" in n else d, STORED)),
    "records that are too long": lambda p: repacked(p, lambda n, d: (d + d if "/data/" in n else d, STORED)),
    "big-endian numbers": lambda p: repacked(p, lambda n, d: (b"big" if "byteorder" in n else d, STORED)),
    "instructions cut off": lambda p: repacked(p, lambda n, d: (d[:-9] if ".pkl" in n else d, STORED)),
    "no instructions": lambda p: repacked(p, lambda n, d: (b"" if ".pkl" in n else d, STORED)),
    "half of the file": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]) and None,
    "a pointer": lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n") and None,
    "a page": lambda p: p.write_bytes(b"<!doctype html><html>") and None,
    "a pickle of Python's": lambda p: p.write_bytes(pickle.dumps({"a": Runs()})) and None,
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_swollen_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({f"layer.{i}.weight": torch.randn(8, 8) for i in range(4)}, path)
    DAMAGE[kind](path)
    with pytest.raises(SpecError, match=r"^'pytorch_model\.bin' "):
        read(path)
    assert not Path("canary").exists()


def test_a_large_file_is_looked_at_in_few_reads(tmp_path: Path) -> None:
    torch.save({f"layers.{i}.weight": torch.zeros(64, 64) for i in range(300)}, tmp_path / "x.bin")
    reads: list[int] = []
    data = (tmp_path / "x.bin").read_bytes()
    held = read_pickled(lambda a, b: reads.append(b - a) or data[a:b], len(data), "x.bin")  # type: ignore[func-returns-value]
    assert len(held.tensors) == 300
    assert len(reads) <= 4
    assert sum(reads) < len(data) / 4


def recipe(model: str, **more: Any) -> Any:
    return parse_recipe({"base_model": model, "stages": [{"stage": "quantize", "method": "nf4"}], **more}, paths=True)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_model_of_the_hub_is_converted_once_as_a_step_and_quantized_as_if_it_had_safetensors(
    hub: LoopbackHub, tiny_model: Path, tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add_model("me/old", turned(tiny_model, tmp_path / "old", shards=3))
    facts = inspect("me/old")
    expected = estimate(recipe("me/old", revision=commit), facts, data)
    assert expected.memory["convert"] > CONVERT_BYTES
    assert expected.disk_bytes > expected.output_bytes + 2 * facts.pickled
    assert main(["quantize", "me/old", "--method", "nf4", "--output", str(tmp_path / "made")]) == 0
    assert "== convert\n" in capfd.readouterr().err
    assert main(["quantize", str(tiny_model), "--method", "nf4", "--output", str(tmp_path / "likewise")]) == 0
    made, likewise = tensors_in(tmp_path / "made"), tensors_in(tmp_path / "likewise")
    assert made.keys() == likewise.keys()
    assert all(torch.equal(made[name], likewise[name]) for name in made)
    assert expected.files == {path.name: path.stat().st_size for path in (tmp_path / "made").iterdir()}
    kept = data / "models" / "me--old"
    assert verify(kept / commit).revision == commit
    assert facts.files == {n: f.size for n, f in open_artifact(kept / commit).files.items()}
    assert not list(kept.rglob("*.bin"))
    hub.requests.clear()
    again = prepare(recipe("me/old"), data, None)
    assert isinstance(again, type(recipe("demo")))
    assert again.steps == ("fetch", "quantize")
    assert fetch_model("me/old", commit, data / "models", None, silent()) == kept / commit


def test_a_folder_of_this_machine_is_converted_for_the_job_and_stays_as_it_is(
    tiny_model: Path, tmp_path: Path, data: Path
) -> None:
    model = turned(tiny_model, tmp_path / "mine", **OLD)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    expected = estimate(recipe(str(model)), inspect(str(model)), data)
    assert expected.memory["convert"] == CONVERT_BYTES + (model / "pytorch_model.bin").stat().st_size
    assert main(["quantize", str(model), "--method", "cast", "--output", str(tmp_path / "made")]) == 0
    assert tensors_in(tmp_path / "made").keys() == load_file(tiny_model / "model.safetensors").keys()
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}
    assert "mine" in (tmp_path / "made" / "recipe.yaml").read_text()
    assert "converts" not in (tmp_path / "made" / "recipe.yaml").read_text()
    assert main(["evaluate", str(tmp_path / "made"), "--reference", str(model), "--num-samples", "2",
                 "--max-seq-length", "32", "--text", str(Path(__file__))]) == 0  # fmt: skip


@pytest.mark.parametrize("command", [["check"], ["evaluate", "--reference", "demo"]])
def test_what_reads_a_folder_at_once_says_how_to_convert_it(
    tiny_model: Path, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    model = turned(tiny_model, tmp_path / "mine")
    assert main([command[0], str(model), *command[1:]]) == 1
    assert "'mine' has pickled weights" in capsys.readouterr().err


def test_safetensors_are_taken_where_both_lie_there(hub: LoopbackHub, tiny_model: Path, tmp_path: Path) -> None:
    both = turned(tiny_model, tmp_path / "both")
    shutil.copy(tiny_model / "model.safetensors", both)
    commit = hub.add_model("me/both", both)
    assert inspect("me/both").pickled == 0
    assert not list(fetch_model("me/both", commit, tmp_path / "models", None, silent()).glob("*.bin"))


def test_a_hostile_pickle_is_refused_before_it_is_downloaded(
    hub: LoopbackHub, tiny_model: Path, tmp_path: Path
) -> None:
    model = turned(tiny_model, tmp_path / "evil")
    torch.save({"a": Runs(), "b": torch.zeros(10**6)}, model / "pytorch_model.bin")
    hub.add_model("evil/old", model)
    with pytest.raises(SpecError, match=r"names '(io|_io|builtins)\.open', which is no plain tensor"):
        inspect("evil/old")
    assert hub.served < 10**6


def test_a_pickled_model_goes_through_the_disk_where_others_stream(
    hub: LoopbackHub, tiny_model: Path, tmp_path: Path, data: Path
) -> None:
    hub.add_model("me/old", turned(tiny_model, tmp_path / "old"))
    wanted = recipe("me/old", publish={"repo_id": "me/new"})
    assert wanted.can_stream
    found = prepare(wanted, data, "hf_write")
    assert not isinstance(found, Streaming)
    assert found.steps == ("fetch", "convert", "quantize", "check", "publish")


def test_a_tokenizer_comes_without_the_pickled_weights(hub: LoopbackHub, tiny_model: Path, tmp_path: Path) -> None:
    commit = hub.add_model("me/old", turned(tiny_model, tmp_path / "old", shards=2))
    folder = fetch_tokenizer("me/old", commit, tmp_path / "models", None, silent())
    assert not [path for path in folder.iterdir() if ".bin" in path.name]
    assert not list(tmp_path.rglob(f"*-{PICKLED}*"))


def test_a_killed_conversion_goes_on_after_its_last_file(tiny_model: Path, tmp_path: Path) -> None:
    model = turned(tiny_model, tmp_path / "old", shards=3)
    held = {path.name: read(path) for path in sorted(model.glob("*.bin"))}
    planned = conversion(held, {})
    target = tmp_path / "made"
    target.mkdir()

    def killed(event: dict[str, Any]) -> None:
        if "00003-of" in event.get("text", ""):
            raise KeyboardInterrupt

    first = Resumable(target)
    with pytest.raises(KeyboardInterrupt):
        convert(model, held, planned, first, Report(killed))
    first.settle()
    done = {path: path.stat().st_mtime_ns for path in target.glob("*.safetensors")}
    assert len(done) == 2
    convert(model, held, planned, Resumable(target), silent())
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert tensors_in(target).keys() == load_file(tiny_model / "model.safetensors").keys()
