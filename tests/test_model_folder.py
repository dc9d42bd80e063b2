"""What goes along with a result: every file that a reader of the base model opens, byte for byte, and nothing else."""

import base64
import json
import re
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest

from backend.__main__ import main
from backend.errors import SpecError
from backend.hub.files import LocalFiles
from backend.model_folder import (
    goes_along,
    has_chat_template,
    has_tokenizer,
    kind_of,
    set_stops,
    set_template,
    settings_in,
    stops_in,
)
from backend.models.admission import admit, admit_adapter
from backend.models.loading import greedy, load_tokenizer
from tests.support.adapters import TINY, save_adapter
from tests.support.loopback_hub import LoopbackHub

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


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))


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


@pytest.mark.real
def test_a_tuned_adapter_keeps_its_bases_companions_though_a_library_would_refuse_to_save_them(
    base: Path, tmp_path: Path
) -> None:
    stop = load_tokenizer(base).eos_token_id
    strange = {"eos_token_id": [stop], "do_sample": False, "temperature": 0.6, "early_stopping": "maybe"}
    strange |= {"penalty_alpha": 0.6, "top_k": 4, "max_new_tokens": -1, "house_field": [1], "stop_strings": ["x"]}
    (base / "generation_config.json").write_text(json.dumps(strange, indent=7))
    rows, made = tmp_path / "rows.jsonl", tmp_path / "adapter"
    rows.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": f"{i}."}) + "\n" for i in range(12)))
    argv = ["finetune", str(base), "--dataset", str(rows), "--output", str(made), "--max-steps", "1"]
    assert main([*argv, "--quantization", "none", "--validation-size", "2"]) == 0
    expected = along(base) | {"generation_config.json": (base / "generation_config.json").read_bytes()}
    assert carried(base, made) == expected


@pytest.mark.parametrize(
    ("said", "penalty"),
    [
        ({"early_stopping": "maybe", "num_beams": 2, "num_return_sequences": 9}, None),
        ({"penalty_alpha": 0.6, "top_k": 4, "constraints": ["x"], "dola_layers": "low"}, None),
        ({"return_dict_in_generate": True, "cache_implementation": "house", "repetition_penalty": 0}, None),
        ({"pad_token_id": "none", "bos_token_id": [1], "compile_config": {}, "repetition_penalty": 1.1}, 1.1),
    ],
)  # fmt: skip
def test_a_models_likeliest_answers_need_nothing_of_its_sampling(
    said: dict[str, object], penalty: float | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]} | said))
    found = greedy(tmp_path)
    assert found.eos_token_id == [3, 5]
    assert found.repetition_penalty == penalty


def test_stops_are_read_from_the_generation_config_or_else_from_the_config(tmp_path: Path) -> None:
    assert stops_in(tmp_path) == set()
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert stops_in(tmp_path) == {7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    assert stops_in(tmp_path) == {7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": -1}')
    assert stops_in(tmp_path) == {7}
    (tmp_path / "generation_config.json").write_text(
        f'{{"eos_token_id": [2, -1, {2**40}, true, 4], "pad_token_id": -1}}'
    )
    assert greedy(tmp_path).pad_token_id is None
    assert stops_in(tmp_path) == {2, 4}


def test_learned_stops_change_one_field_and_known_ones_none(tmp_path: Path) -> None:
    place, text = tmp_path / "generation_config.json", '{ "eos_token_id": [4,  2], "temperature": 0.6 }'
    place.write_text(text)
    set_stops(tmp_path, {2, 4})
    assert place.read_text() == text
    set_stops(tmp_path, {2, 4, 8})
    assert json.loads(place.read_text()) == {"eos_token_id": [2, 4, 8], "temperature": 0.6}


def test_a_given_template_takes_the_place_of_all_that_the_base_has(base: Path) -> None:
    (base / "chat_template.json").write_text('{"chat_template": "old"}')
    settings = settings_in(base, "tokenizer_config.json")
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "old"}))
    set_template(base, "{{ messages }}")
    assert load_tokenizer(base).chat_template == "{{ messages }}"
    assert settings_in(base, "tokenizer_config.json") == settings
    assert [p.name for p in base.rglob("*") if kind_of(p.relative_to(base).as_posix()) == "template"] == [
        "chat_template.jinja"
    ]
    assert has_chat_template(base)


def sentencepiece(*texts: str) -> bytes:
    """Return a sentencepiece model of bytes and some pieces, as its format has it: a BPE with byte fallback."""

    def part(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        return part(1, part(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind]))

    special = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
    letters = b"".join(piece(f"<0x{i:02X}>", 0, 6) for i in range(256))
    words = b"".join(piece(text, -float(i), 1) for i, text in enumerate(texts))
    return special + letters + words + part(2, b"\x18\x02\x98\x02\x01")


@pytest.mark.parametrize(
    ("name", "of"),
    [("tokenizer.model", "Llama"), ("tokenizer.model", "Gemma"), ("tokenizer.model", "CodeLlama")],
)
def test_a_tokenizer_of_sentencepiece_alone_is_read(name: str, of: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(sentencepiece("▁", "h", "e", "l", "o", "he"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": of.lower()}))
    settings = {"tokenizer_class": f"{of}Tokenizer", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.is_fast
    assert tokenizer.decode(tokenizer("hello", add_special_tokens=False)["input_ids"]) == "hello"


TIKTOKEN = b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256))


@pytest.mark.parametrize(
    ("files", "model_type", "words"),
    [
        ({"tokenizer.model": TIKTOKEN}, "llama", "with the package tiktoken: install that"),
        ({"qwen.tiktoken": TIKTOKEN}, "qwen2", "gives no tokens"),
        ({"tekken.json": COMPANIONS["tekken.json"]}, "mistral", "gives no tokens"),
        ({"vocab.json": b"{}", "merges.txt": b""}, "biogpt", "the package sacremoses"),
        ({}, "llama", "Choose a model with one."),
    ],
    ids=["tiktoken", "tiktoken of Qwen", "tekken", "a slow one", "none"],
)
def test_a_tokenizer_that_cannot_be_read_says_in_a_sentence_what_it_wants(
    files: dict[str, bytes], model_type: str, words: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(SpecError, match=r"^The tokenizer of '[^'\n]+'[^\n]*\.$") as e:
        load_tokenizer(tmp_path)
    assert words in str(e.value)
