"""What goes along with a result: every file that a reader of the base model opens, byte for byte, and nothing else."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from backend.__main__ import main
from backend.hub.admission import admit, admit_adapter
from backend.hub.files import LocalFiles
from backend.model_folder import goes_along, has_tokenizer, kind_of
from tests.loopback_hub import LoopbackHub
from tests.test_merge import TINY, save_adapter

SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
COMPANIONS = {
    "tokenizer.model": SENTENCEPIECE,
    "sentencepiece.bpe.model": SENTENCEPIECE,
    "tokenizer.model.v3": SENTENCEPIECE,
    "qwen.tiktoken": b"IQ== 0\n",
    "tekken.json": b'{"config": {"pattern": "x"}, "vocab": [], "special_tokens": []}',
    "emoji.json": b'{"emoji": {}, "emoji_inv": {}}',
    "merges.txt": b"#version: 0.2\n",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "chat_templates/rag.jinja": b"{{ documents }}",
    "preprocessor_config.json": b'{ "size":  224 }',
    "video_preprocessor_config.json": b"{}",
    "generation_config.json": b'{ "do_sample": false, "temperature": 0.6, "house_field":  [1] }',
    "params.json": b'{"dim": 64}',
    "LICENSE.txt": b"Do good things with it.\n",
    "Third_Party_Notices.txt": b"None.\n",
}
LEFT_BEHIND = {
    "modeling_tiny.pyc.bak": b"x",
    "training_args.bin": b"x",
    "scheduler.pt": b"x",
    "trainer_state.json": b"{}",
    "processor_config.json": b'{"auto_map": {"AutoProcessor": "processing_tiny.Tiny"}}',
    "tokenizer/vocab.json": b"{}",
    "samples/chat_template.jinja": b"{{ x }}",
}


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a file of every kind that lies beside weights, and others."""
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    for name, content in {**COMPANIONS, **LEFT_BEHIND}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def along(base: Path) -> dict[str, bytes]:
    """Return what is expected of the base beside a result's weights, by name."""
    own = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return COMPANIONS | {name: (base / name).read_bytes() for name in own}


def carried(base: Path, folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in along(base) if (folder / name).is_file()}


def test_every_file_that_a_tokenizer_of_transformers_names_goes_along() -> None:
    package = find_spec("transformers")
    assert package
    assert package.origin
    sources = sorted(Path(package.origin).parent.glob("models/*/tokenization_*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r'"\w+_file": "([^"]+\.\w+)"', text))
    assert {"spiece.model", "emoji.json", "prophetnet.tokenizer"} < named
    assert not [name for name in named if not goes_along(name, 1)]


@pytest.mark.parametrize(
    "name",
    [
        "modeling_phi3.py", "tokenization_x.py", "pytorch_model.bin", "tokenizer.pkl", "vocab.pt", "license.py",
        "notice.bin", "chat_template.py", "config.json", "model.safetensors", "README.md", "a/tokenizer.json",
        "additional_chat_templates/a/b.jinja", "additional_chat_templates/../x.jinja", "tokenizer.model.py",
    ],
)  # fmt: skip
def test_code_pickles_and_weights_are_no_companions(name: str) -> None:
    assert kind_of(name) is None


def test_settings_alone_are_no_tokenizer() -> None:
    assert not has_tokenizer(["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"])
    for name in ("spm.model", "vocab.txt", "tekken.json", "qwen.tiktoken", "tokenizer.model.v7m1", "tokenizer.json"):
        assert has_tokenizer([name])


def test_a_model_is_admitted_with_its_companions_and_without_a_processor_that_wants_code(base: Path) -> None:
    taken = {entry.name for entry in admit(LocalFiles(base), whole=True).files}
    assert taken == {*along(base), "config.json", "model.safetensors"}


def test_a_result_and_what_is_published_of_it_hold_every_companion_byte_for_byte(base: Path, tmp_path: Path) -> None:
    made, sent = tmp_path / "made", tmp_path / "sent"
    assert main(["quantize", str(base), "--method", "nf4", "--output", str(made)]) == 0
    assert main(["publish", str(made), "--to-folder", str(sent), "--insist"]) == 0
    assert carried(base, made) == carried(base, sent) == along(base)
    there = {path.relative_to(sent).as_posix() for path in sent.rglob("*") if path.is_file()}
    own = {"README.md", "artifact.json", "config.json", "model.safetensors", "recipe.yaml"}
    assert there - along(base).keys() == own


def test_a_model_that_goes_from_repo_to_repo_takes_its_companions_along(
    base: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, recipe = "hf_" + "canary" * 6, tmp_path / "recipe.yaml"
    hub.add_model("acme/tiny", base)
    hub.add_token(token, "me")
    monkeypatch.setenv("HF_TOKEN", token)
    stage = {"stage": "quantize", "method": "cast", "dtype": "float16"}
    made = {"base_model": "acme/tiny", "stages": [stage], "publish": {"repo_id": "me/tiny-16"}}
    recipe.write_text(json.dumps(made))
    assert main(["run", str(recipe)]) == 0
    there = hub.files("me/tiny-16")
    assert {name: there[name] for name in along(base)} == along(base)
    assert not there.keys() & LEFT_BEHIND.keys()


def test_a_folder_made_elsewhere_is_published_with_its_companions(base: Path, tmp_path: Path) -> None:
    assert main(["publish", str(base), "--to-folder", str(tmp_path / "sent"), "--insist"]) == 0
    assert carried(base, tmp_path / "sent") == along(base)
    assert not (tmp_path / "sent" / "processor_config.json").exists()


def test_an_adapter_is_taken_with_all_that_it_brings_beside_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model, tmp_path / "adapter", target_modules=TINY)
    there = {path.name for path in folder.iterdir()}
    for name, content in COMPANIONS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    taken = {entry.name for entry in admit_adapter(LocalFiles(folder))}
    assert taken == {*COMPANIONS, *there}


def test_a_vocabulary_that_is_no_json_is_refused_with_its_name(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "tekken.json").write_text(json.dumps({"vocab": []})[:-1])
    assert main(["quantize", str(base), "--method", "nf4", "--output", str(base.parent / "made")]) == 1
    assert "'tekken.json' is not valid JSON" in capsys.readouterr().err
