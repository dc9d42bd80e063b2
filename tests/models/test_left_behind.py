"""Code that a repo brings along beside a model that transformers has itself stays behind, and never runs."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from backend.__main__ import main
from backend.artifacts.artifact import MANIFEST
from backend.artifacts.sealing import verify
from backend.errors import SpecError
from backend.hub.files import LocalFiles
from backend.models.admission import admit, admit_adapter
from backend.models.fetch import fetch_model, fetch_tokenizer
from backend.models.inspection import inspect
from backend.models.loading import load_causal_lm, load_tokenizer
from backend.progress import silent
from backend.publish.adopt import adopt
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
from tests.support.loopback_hub import LoopbackHub
from tests.support.paper_models import paper_model, write

OWN_MODEL = {"auto_map": {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}}
OWN_TOKENIZER = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
OTHERS = {"auto_map": {"AutoModelForCausalLM": "evil/code--modeling_evil.Evil"}}
KINDS: dict[str, dict[str, Mapping[str, Any]]] = {
    "a model's classes": {"config.json": OWN_MODEL},
    "another repo's classes": {"config.json": OTHERS},
    "a pipeline": {"config.json": {"custom_pipelines": {"text-generation": {"impl": "pipe_own.Pipe"}}}},
    "a way to generate": {"generation_config.json": {"custom_generate": "custom_generate"}},
    "a tokenizer's class": {"tokenizer_config.json": OWN_TOKENIZER | {"tokenizer_class": "OwnTokenizer"}},
    "an old tokenizer's class": {"tokenizer_config.json": {"auto_map": ["tokenization_own.OwnTokenizer", None]}},
    "one class alone": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer"]}}},
}
KINDS["everything"] = KINDS["a model's classes"] | KINDS["a way to generate"] | KINDS["a tokenizer's class"]
CODE = ("modeling_own.py", "configuration_own.py", "tokenization_own.py", "pipe_own.py", "kernel.so", "deep/more.py",
        "custom_generate/generate.py", "__pycache__/modeling_own.pyc")  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def coded(tiny_model: Path, tmp_path: Path, canary: Path) -> Callable[[str], Path]:
    """Return the tiny model with code of its own beside it, by a key of KINDS."""

    def make(kind: str) -> Path:
        folder = tmp_path / "coded"
        shutil.copytree(tiny_model, folder)
        for name, fields in KINDS[kind].items():
            said = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(said | dict(fields)))
        return write(folder, dict.fromkeys(CODE, f"open({str(canary)!r}, 'w')\n"))

    return make


def names_code(folder: Path) -> list[str]:
    fields = ("auto_map", "custom_pipelines", "custom_generate", "OwnTokenizer")
    found = [path for path in folder.rglob("*") if path.name not in (MANIFEST, "tokenizer.json") and path.is_file()]
    texts = [path for path in found if path.suffix in (".json", ".py", ".yaml")]
    return [path.name for path in texts if any(field in path.read_text() for field in fields)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_the_hub_arrives_without_it_and_loads(
    hub: LoopbackHub, tmp_path: Path, coded: Callable[[str], Path], canary: Path, kind: str
) -> None:
    commit = hub.add_model("acme/coded", coded(kind))
    facts = inspect("acme/coded")
    folder = fetch_model("acme/coded", commit, tmp_path / "models", None, silent())
    assert set(verify(folder).files) == set(facts.files)
    assert facts.files == {name: (folder / name).stat().st_size for name in facts.files}
    assert not set(facts.files) & set(CODE)
    assert not any(request.path.endswith(CODE) for request in hub.requests)
    assert names_code(folder) == []
    assert names_code(fetch_tokenizer("acme/coded", commit, tmp_path / "others", None, silent())) == []
    load_causal_lm(folder, silent())
    assert load_tokenizer(folder)("hello")["input_ids"]
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["a pipeline", "everything"])
def test_a_folder_of_this_machine_stays_as_it_is_and_its_results_name_none(
    tmp_path: Path, coded: Callable[[str], Path], canary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    model, made = coded(kind), tmp_path / "made"
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    load_causal_lm(model, silent())
    assert load_tokenizer(model)("hello")["input_ids"]
    recipe = parse_recipe({"base_model": str(model), "stages": [{"stage": "quantize", "method": "nf4"}]}, paths=True)
    expected = estimate(recipe, inspect(str(model)), tmp_path / "data")
    assert main(["quantize", str(model), "--method", "nf4", "--output", str(made)]) == 0
    assert expected.files == {path.name: path.stat().st_size for path in made.iterdir()}
    assert names_code(made) == []
    adopt(model, tmp_path / "adopted", None, silent())
    assert names_code(tmp_path / "adopted") == []
    assert before == {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert not canary.exists()


@pytest.mark.parametrize("model_type", ["chatglm", "internlm2", "qwen"])
def test_a_type_that_only_such_code_knows_is_refused(tmp_path: Path, model_type: str) -> None:
    folder = write(tmp_path, paper_model(OWN_MODEL | {"model_type": model_type}, modeling_own__py="1"))
    with pytest.raises(SpecError, match=r"^'config\.json' has the field 'auto_map', which makes libraries run code"):
        admit(LocalFiles(folder))


@pytest.mark.parametrize("architecture", ["PhiMoEForCausalLM", "PhimoeForCausalLM"])
def test_a_class_is_the_same_in_whatever_case_it_is_written(tmp_path: Path, architecture: str) -> None:
    fields = OWN_MODEL | {"model_type": "phimoe", "architectures": [architecture]}
    assert "auto_map" not in admit(LocalFiles(write(tmp_path, paper_model(fields)))).config.data


@pytest.mark.parametrize(
    ("model_type", "architecture", "taken"),
    [
        ("internlm3", "InternLM3ForCausalLM", True),
        ("iquestcoder", "IQuestCoderForCausalLM", True),
        ("internlm3", "InternLM3LoopForCausalLM", False),
        ("llama", "OwnForCausalLM", False),
    ],
)
def test_a_type_that_transformers_reads_with_the_class_of_another_is_known(
    tmp_path: Path, model_type: str, architecture: str, taken: bool
) -> None:
    files = LocalFiles(
        write(tmp_path, paper_model(OWN_MODEL | {"model_type": model_type, "architectures": [architecture]}))
    )
    if taken:
        assert admit(files).config.model_type == model_type
    else:
        with pytest.raises(SpecError, match="a class of the repo's own code, which never runs"):
            admit(files)


def test_a_tokenizer_is_taken_where_transformers_has_its_class_and_no_file_of_its_own_is_needed(tmp_path: Path) -> None:
    settings = OWN_TOKENIZER | {"tokenizer_class": "LlamaTokenizer"}
    model = paper_model(tokenizer_config__json=settings, tokenizer__json=None, tokenizer__model=b"x")
    kept = admit(LocalFiles(write(tmp_path, model))).kept
    assert kept == {"tokenizer_config.json": len(json.dumps({"tokenizer_class": "LlamaTokenizer"}, indent=2)) + 1}


def test_an_adapters_repo_is_taken_without_its_code(tmp_path: Path) -> None:
    files = {"adapter_config.json": "{}", "adapter_model.safetensors": b"x", "modeling.py": "1", "tokenizer.json": "{}"}
    files["tokenizer_config.json"] = json.dumps(OWN_TOKENIZER)
    taken = {entry.name for entry in admit_adapter(LocalFiles(write(tmp_path, files)))}
    assert taken == set(files) - {"modeling.py"}
