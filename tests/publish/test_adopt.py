"""A folder that was made elsewhere is published as what its own files say, and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from backend.artifacts.artifact import Check
from backend.artifacts.sealing import is_sealed, open_artifact, record, verify
from backend.disk import sha256
from backend.errors import SpecError
from backend.jobs.job import write_spec
from backend.jobs.worker import do
from backend.progress import silent
from backend.publish.adopt import adopt, describe, preview
from backend.publish.files import outgoing
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from backend.stages.work import stage_folder
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import publication
from tests.support.typed import fails, succeeds

Make = Callable[..., Path]

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}, "targets": ["Linear"]}},
    "ignore": ["lm_head"],
}
OF_PEFT = """---
base_model: {base}
library_name: peft
tags:
- base_model:adapter:{base}
- lora
- transformers
---
# Model Card for Model ID
"""


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Make:
    """A folder as transformers' save_pretrained leaves it; fields of its config can be different."""

    def make(name: str = "mine", readme: str | None = None, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder)
        edit(folder / "config.json", **config)
        if readme:
            (folder / "README.md").write_text(readme)
        return folder

    return make


@pytest.fixture
def adapter(make_adapter: Make, tmp_path: Path) -> Make:
    """A folder as PEFT's save_pretrained leaves it: weights, config, and a README with the place of the base model."""

    def make(name: str = "lora", base: str | None = None, **config: Any) -> Path:
        made, folder = make_adapter(f"made-{name}"), tmp_path / name
        base = base or str(tmp_path / "somewhere" / "tiny-llama")
        folder.mkdir()
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(made / file, folder / file)
        edit(folder / "adapter_config.json", **{"base_model_name_or_path": base, "peft_version": "0.21.2", **config})
        (folder / "README.md").write_text(OF_PEFT.format(base=base))
        return folder

    return make


def everything(folder: Path) -> str:
    return "".join(p.read_text(errors="replace") for p in sorted(folder.iterdir()) if p.suffix != ".safetensors")


def test_a_model_saved_by_transformers_says_what_it_is(model: Make) -> None:
    found = describe(model())
    assert (found.kind, found.base_model) == ("model", None)
    assert found.options == {"architecture": "LlamaForCausalLM", "parameters": 106816, "dtype": "bfloat16"}
    assert front_matter(preview(model("again"), "me/x").card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["weightsmith"],
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (GPTQ, "quantized to 4 bits (gptq)"),
        (AWQ, "quantized to 4 bits (awq)"),
        (PACKED, "quantized to 4 bits (compressed-tensors)"),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "quantized to FP8 in blocks of 128 × 128 (fp8)",
        ),
    ],
)
def test_a_quantized_model_says_how(model: Make, settings: dict[str, Any], words: str) -> None:
    folder = model(quantization_config=settings, readme="---\nbase_model: acme/tiny\nlicense: mit\n---\n")
    seen = preview(folder, "me/x")
    assert (seen.artifact.kind, seen.artifact.base_model) == ("quantized", "acme/tiny")
    assert words in seen.card
    assert "vllm serve me/x" in seen.card
    data = front_matter(seen.card)
    assert (data["base_model"], data["base_model_relation"], data["license"]) == ("acme/tiny", "quantized", "mit")


def test_settings_that_autogptq_left_beside_the_config_go_into_it(model: Make, tmp_path: Path) -> None:
    folder = model()
    plain = {key: value for key, value in GPTQ.items() if key != "quant_method"}
    (folder / "quantize_config.json").write_text(json.dumps(plain | {"model_name_or_path": "/home/me/x"}))
    adopt(folder, tmp_path / "adopted", None, silent())
    assert json.loads((tmp_path / "adopted" / "config.json").read_text())["quantization_config"] == GPTQ
    assert json.loads((tmp_path / "adopted" / "quantize_config.json").read_text()) == plain
    assert open_artifact(tmp_path / "adopted").options["bits"] == 4


@pytest.mark.parametrize("named", [None, "acme/tiny"])
def test_the_place_of_an_adapters_base_model_is_dropped_unless_somebody_names_it(
    hub: LoopbackHub, adapter: Make, tmp_path: Path, named: str | None
) -> None:
    assert not hub.requests  # an emptied one: other tests publish a base model of this name
    folder, target = adapter(), tmp_path / "adopted"
    adopt(folder, target, named, silent())
    sent = outgoing(target, "me/x")
    card = sent["README.md"].read().decode()
    data = front_matter(card)
    assert data.get("base_model") == named
    assert data.get("base_model_relation") == ("adapter" if named else None)
    assert data["tags"] == ["lora", "transformers", "weightsmith"]
    assert json.loads(sent["adapter_config.json"].read())["base_model_name_or_path"] == named
    assert str(tmp_path) not in "".join(f.read().decode(errors="replace") for f in sent.values())
    assert "its files do not say" in card
    assert "vllm serve" not in card  # the adapter brings no tokenizer
    assert "The training held" not in card


def test_a_base_model_that_the_adapter_names_by_its_id_stays(adapter: Make) -> None:
    found = preview(adapter(base="acme/tiny", revision="c" * 40), "me/x")
    assert (found.artifact.base_model, found.artifact.revision) == ("acme/tiny", "c" * 40)
    assert front_matter(found.card)["base_model"] == "acme/tiny"
    assert f'revision="{"c" * 40}"' in found.card


def test_what_looks_like_an_id_but_is_a_folder_here_is_no_id(
    adapter: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert describe(adapter(base="out/base")).base_model is None


def test_what_its_own_card_says_is_carried_over_and_its_lies_are_not(model: Make, tmp_path: Path) -> None:
    readme = (
        "---\nlicense: my-own\nlanguage: [de]\ndatasets: [acme/rows]\nbase_model: [acme/a, acme/b]\n"
        "base_model_relation: merge\ntags: [merge, gguf, base_model:acme/a]\nmodel-index: nonsense\n---\nSecret words\n"
    )
    card = preview(model(readme=readme), "me/x").card
    assert front_matter(card) == {
        "base_model": ["acme/a", "acme/b"],
        "base_model_relation": "merge",
        "license": "other",
        "license_name": "my-own",
        "language": ["de"],
        "datasets": ["acme/rows"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "weightsmith"],
    }
    assert "Secret words" not in card
    assert "made of [acme/a](https://huggingface.co/acme/a) and [acme/b]" in card


def test_only_what_makes_the_model_is_taken_and_the_folder_stays_as_it_is(model: Make, tmp_path: Path) -> None:
    folder, target = model(), tmp_path / "adopted"
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "notes.txt"):
        (folder / name).write_text("x")
    (folder / "LICENSE").write_text("Do good things with it.\n")
    (folder / "model.safetensors").chmod(0o600)
    before = {path.name: (path.stat().st_mode, sha256(path)) for path in folder.iterdir()}
    adopt(folder, target, None, silent())
    assert {path.name: (path.stat().st_mode, sha256(path)) for path in folder.iterdir()} == before
    assert set(verify(target).files) == {
        "LICENSE", "base_card.json", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (target / "model.safetensors").samefile(folder / "model.safetensors")


def test_places_that_libraries_write_down_are_left_out(model: Make, tmp_path: Path) -> None:
    folder = model(_name_or_path="/home/me/base")
    edit(folder / "tokenizer_config.json", name_or_path="/home/me/base")
    adopt(folder, tmp_path / "adopted", None, silent())
    assert "/home/me" not in everything(tmp_path / "adopted")
    assert (tmp_path / "adopted" / "tokenizer.json").samefile(folder / "tokenizer.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"])
def test_a_folder_with_pickles_alone_is_refused_with_the_way_out(model: Make, adapter: Make, name: str) -> None:
    folder = adapter() if name.startswith("adapter") else model()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / name).write_bytes(b"\x80")
    with pytest.raises(SpecError, match=rf"only pickled weights, '{name}'.*write safetensors with save_pretrained"):
        describe(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b'{"a": "hf_' + b"a" * 30 + b'"}'])
def test_a_damaged_folder_is_refused(model: Make, content: bytes) -> None:
    folder = model()
    (folder / "config.json").write_bytes(content)
    with pytest.raises(SpecError):
        describe(folder)


def test_the_preview_shows_what_is_pushed(model: Make, hub: LoopbackHub, tmp_path: Path) -> None:
    folder, target = model(quantization_config=GPTQ, _name_or_path="/home/me/x"), tmp_path / "adopted"
    (folder / "LICENSE").write_text("Do good things with it.\n")
    seen = preview(folder, "me/new", "acme/tiny")
    adopt(folder, target, "acme/tiny", silent())
    publish(target, PublishOptions(repo_id="me/new", insist=True), "hf_write", silent())
    there = hub.files("me/new")
    assert {name: len(data) for name, data in there.items()} == seen.files
    assert there["README.md"].decode() == seen.card


def test_a_push_alone_takes_such_a_folder_and_leaves_nothing_beside_it(model: Make, tmp_path: Path) -> None:
    folder, target = model(), tmp_path / "out"
    with pytest.raises(SpecError, match="'mine' is not published before it is checked"):
        publish(folder, PublishOptions(to_folder=target), None, silent())
    publish(folder, PublishOptions(to_folder=target, insist=True), None, silent())
    assert verify(target).files.keys() == preview(folder).files.keys() - {"artifact.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "out"}


HOSTILE = "x\n---\nlicense: mit\n---\n<script>alert(1)</script> [click](javascript:alert(1)) {{ 7*7 }} | `a`"


def test_what_hostile_files_say_appears_literally_or_not_at_all(model: Make, adapter: Make, tmp_path: Path) -> None:
    odd = dict.fromkeys(("peft_type", "task_type", "r", "target_modules", "revision", "peft_version"), HOSTILE)
    readme = f"---\nlicense: gpl\nbase_model: acme/tiny\ntags: [{json.dumps(HOSTILE)}]\n---\n"
    lora = adapter(base="acme/tiny", **odd)
    packed = model(quantization_config=GPTQ | {"checkpoint_format": HOSTILE}, transformers_version=HOSTILE)
    bare = model("bare")
    (bare / "quantize_config.json").write_text(json.dumps({"quant_method": {"a": HOSTILE}, "bits": HOSTILE}))
    for folder in (lora, packed, bare):
        (folder / "README.md").write_text(readme)
        seen = preview(folder, "me/x")
        assert (front_matter(seen.card)["license"], seen.artifact.revision) == ("gpl", None)
        body = seen.card.split("\n---\n", 1)[1]
        assert "<script" not in body
        assert not re.search(r"(?<!\\)\]\(javascript:", body)
        assert "49" not in body


def test_the_license_of_a_base_model_on_the_hub_is_carried_over_to_an_adapter_that_names_none(
    adapter: Make, hub: LoopbackHub, tiny_model: Path, tmp_path: Path
) -> None:
    texts = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    texts |= {"LICENSE.txt": b"Terms\n", "USE_POLICY.md": b"Theirs\n"}
    hub.add_model("meta/tiny", texts, card="---\nlicense: llama3.2\n---\n", gated=True)
    hub.grant("meta/tiny", "me")
    folder, target = adapter(base="meta/tiny"), tmp_path / "adopted"
    (folder / "USE_POLICY.md").write_text("Mine\n")
    assert "license" not in front_matter(preview(folder, "me/x").card)
    seen = preview(folder, "me/Llama-x", token="hf_write")
    assert front_matter(seen.card)["license"] == "llama3.2"
    assert (
        "llama3.2, carried over from the base model's card. Its texts are in this repo: LICENSE.txt, USE_POLICY.md."
        in seen.card
    )
    assert {"LICENSE.txt", "NOTICE"} <= seen.files.keys()
    adopt(folder, target, None, silent(), "hf_write")
    assert outgoing(target, "me/Llama-x")["README.md"].read().decode() == seen.card
    assert (folder / "USE_POLICY.md").read_text() == (target / "USE_POLICY.md").read_text() == "Mine\n"
    with pytest.raises(SpecError, match="begins with 'Llama'"):
        outgoing(target, "me/x")


def test_a_folder_made_elsewhere_is_not_published_into_itself(model: Make) -> None:
    folder = model()
    with pytest.raises(SpecError, match="lies within what is published"):
        publication(folder, PublishOptions(to_folder=folder / "published"))


def test_a_folder_made_elsewhere_is_adopted_before_it_is_checked_and_published(model: Make) -> None:
    options = PublishOptions(repo_id="me/x")
    assert publication(model(), options).steps == ("adopt", "check", "publish")
    assert publication(model("b"), options.model_copy(update={"insist": True})).steps == ("adopt", "publish")


def test_what_is_wrong_with_a_folder_made_elsewhere_is_said_of_the_folder_that_was_given(
    model: Make, tmp_path: Path
) -> None:
    job, spec = tmp_path / "job", publication(model(), PublishOptions(to_folder=tmp_path / "out"))
    left = spec.given(job).folder / "half.safetensors"  # by a run that was killed
    left.parent.mkdir(parents=True)
    left.write_text("half")
    write_spec(job, spec)

    def step(index: int) -> None:
        do(job, index, True, None, silent())

    step(0)
    assert is_sealed(stage_folder(job, spec, 0))
    assert not left.exists()
    with pytest.raises(SpecError, match="'mine' is not published before it is checked"):
        step(2)
    record(spec.given(job).folder, check=Check(passed=False, prompts=1, reason="vLLM fails at an answer."))
    with pytest.raises(SpecError, match=r"'mine' was not published: its check failed. vLLM fails at an answer\."):
        step(2)
    record(spec.given(job).folder, check=Check(passed=True, prompts=1))
    with (spec.folder / "model.safetensors").open("r+b") as weights:  # the same bytes, under another name
        weights.seek(-1, 2)
        weights.write(b"x")
    with pytest.raises(SpecError, match=r"'model.safetensors' in 'mine' has changed.*: give the folder again\."):
        step(2)


def test_who_insists_publishes_any_folder_with_one_command(
    model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    folder, target, text = model(readme="---\nlicense: mit\n---\n"), tmp_path / "out", tmp_path / "text.md"
    text.write_text("---\nlicense: apache-2.0\n---\n# Mine\n\n---\n\n{{ 7*7 }} <b>&amp;</b> [x](https://x.org)\n")
    succeeds(capsys, "publish", str(folder), "--to-folder", str(target), "--card", str(text), "--base-model",
             "acme/tiny", "--insist")  # fmt: skip
    card = (target / "README.md").read_text()
    assert front_matter(card)["license"] == "mit"
    assert front_matter(card)["base_model"] == "acme/tiny"
    assert card.endswith("\n---\n\n# Mine\n\n---\n\n{{ 7*7 }} <b>&amp;</b> [x](https://x.org)\n")
    assert open_artifact(target).kind == "model"
    assert not [path for path in (tmp_path / "data" / "runs").glob("*") if path.is_dir()]
    words = fails(capsys, "publish", str(folder), "--to-folder", str(tmp_path / "b"), "--card", str(tmp_path / "no"))
    assert "Could not read the card" in words


@pytest.mark.real
def test_what_transformers_and_peft_write_today_is_published_after_a_check_and_loads(
    tiny_model: Path,
    tmp_path: Path,
    hub: LoopbackHub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    nf4, lora = tmp_path / "nf4", tmp_path / "lora"
    shutil.copytree(tiny_model, nf4, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    held = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=held).save_pretrained(nf4)
    wanted = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), wanted).save_pretrained(lora)
    assert str(tiny_model) in (lora / "README.md").read_text()
    for folder, more in ((nf4, []), (lora, ["--insist"])):
        target = tmp_path / f"{folder.name}-out"
        succeeds(capsys, "publish", str(folder), "--to-folder", str(target), *more)
        assert str(tiny_model) not in everything(target)
        card = ModelCard((target / "README.md").read_text())
        card.validate()
        [code] = re.findall(r"```python\n(.*?)```", str(card), re.DOTALL)
        code = code.replace("the base model's folder", str(tiny_model))
        done = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip()
    assert open_artifact(tmp_path / "nf4-out").check.engine == "transformers"
