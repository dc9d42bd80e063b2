"""Merged models, compared with float64 arithmetic, with PEFT's merge_and_unload and with bitsandbytes."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact
from backend.errors import SpecError
from backend.merge.merging import record
from backend.models.demo import demo_folder, evaluation_text
from backend.progress import silent
from backend.publish.card.card import build_card
from backend.quantize import METHODS
from backend.recipes import parse_recipe
from backend.stages.prepare import prepare
from backend.weights.anatomy import is_linear
from backend.weights.checkpoint import Checkpoint
from backend.weights.dequantized import Dequantized
from backend.weights.floats import SAFETENSORS
from backend.weights.output import Output
from tests.support.adapters import TINY, edited, merge_to, opened, options, resaved, save_adapter, save_model, with_peft

TRUTH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def in_float64(base, *adapters, weights=None):
    """Add up in float64 what PEFT has loaded: the weights that the trained model computes with."""
    from peft.tuners.lora import Embedding, LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    model = with_peft(base, *adapters).base_model.model
    names = [str(i) for i in range(len(adapters))]
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            stored = module.get_base_layer()
            turned = type(stored).__name__ == "Conv1D" or isinstance(module, Embedding)
            weight = stored.weight.double().T if turned else stored.weight.double()
            total = weight.clone()
            for adapter, share in zip(names, weights or [1] * len(names), strict=True):
                kind = "lora_embedding_" if isinstance(module, Embedding) else "lora_"
                a, b = (getattr(module, kind + part)[adapter] for part in "AB")
                a, b = (getattr(matrix, "weight", matrix).double() for matrix in (a, b))
                tuned = weight + b @ a * module.scaling[adapter]
                if adapter in module.lora_magnitude_vector:
                    magnitude = module.lora_magnitude_vector[adapter].weight.double()
                    tuned = tuned * (magnitude / tuned.norm(dim=1))[:, None]
                total += share * (tuned - weight)
            found[f"{name}.weight"] = total.T if turned else total
            if getattr(stored, "bias", None) is not None:
                found[f"{name}.bias"] = stored.bias
        elif isinstance(module, ModulesToSaveWrapper):
            found |= {f"{name}.{key}": value for key, value in module.modules_to_save["0"].state_dict().items()}
    for key, value in model.state_dict().items():
        if not any(part in key for part in ("lora_", "base_layer", "modules_to_save", "original_module")):
            found.setdefault(key, value)
    return {key: value.detach() for key, value in found.items()}


def rounded(values, dtype):
    """Round float64 once: torch goes through float32, which here is first made to lie on the right side of a tie."""
    single = values.float()
    if values.dtype != torch.float64 or dtype == torch.float32:
        return values.to(dtype)
    beyond = torch.where(values > single.double(), torch.inf, -torch.inf)
    near = single.to(dtype)
    other = torch.nextafter(single, beyond.float()).to(dtype)
    closer = (other.double() - values).abs() < (near.double() - values).abs()
    return torch.where((single.double() != values) & closer, other, near)


def different(found, exact, dtype):
    """Count the elements that are not the nearest to the float64 ones."""
    return sum(int((found[name] != rounded(value, dtype)).sum()) for name, value in exact.items())


def nearest(found, exact, dtype):
    """Return whether no more than one element in 100,000 is not the nearest to the float64 one."""
    assert set(found) == set(exact)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    return different(found, exact, dtype) <= 1e-5 * sum(tensor.numel() for tensor in found.values())


CASES = {
    "plain": ({}, {}),
    "float32": ({"dtype": torch.float32}, {}),
    "float16": ({"dtype": torch.float16}, {}),
    "ranks and alphas of their own": (
        {},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"^model.layers.0.+q_proj": 9}},
    ),
    "rank-stabilized": ({}, {"use_rslora": True}),
    "dora": ({}, {"use_dora": True}),
    "biases": ({"attention_bias": True}, {"bias": "lora_only"}),
    "whole tensors": ({}, {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "embeddings": ({}, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "embeddings with dora": ({}, {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "turned": ({"kind": "gpt2"}, {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "turned with dora": (
        {"kind": "gpt2"},
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_the_nearest_to_the_float64_one_as_or_better_than_with_peft(case, tmp_path):
    model, config = CASES[case]
    base = save_model(tmp_path / "base", **model)
    adapter = save_adapter(base, tmp_path / "adapter", **config)
    exact, dtype = in_float64(base, adapter), model.get("dtype", torch.bfloat16)
    if model.get("kind") == "gpt2":
        exact.pop("lm_head.weight")  # it is the embeddings
    found, _ = merge_to(tmp_path / "merged", base, adapter)
    assert nearest(found, exact, dtype)
    theirs = with_peft(base, adapter).merge_and_unload().state_dict()
    assert different(found, exact, dtype) <= different(theirs, exact, dtype)
    assert different(load_file(base / "model.safetensors"), exact, dtype) > 1000


def test_several_adapters_are_added_up_each_with_its_weight(tmp_path):
    base = save_model(tmp_path / "base")
    adapters = [
        save_adapter(base, tmp_path / "a", 1, use_dora=True),
        save_adapter(base, tmp_path / "b", 2, r=8, target_modules=["q_proj", "up_proj"]),
    ]
    exact = in_float64(base, adapters[0], weights=[0.5])
    more, plain = in_float64(base, adapters[1]), load_file(base / "model.safetensors")
    exact = {name: value.double() - 2 * (more[name].double() - plain[name].double()) for name, value in exact.items()}
    found, _ = merge_to(tmp_path / "merged", base, *adapters, adapter_weights=[0.5, -2])
    assert nearest(found, exact, torch.bfloat16)


def test_a_whole_tensor_of_a_weighted_adapter_is_a_mean(tmp_path):
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "a", modules_to_save=["lm_head"])
    found, _ = merge_to(tmp_path / "merged", base, adapter, adapter_weights=[0.25])
    before = load_file(base / "model.safetensors")["lm_head.weight"].double()
    after = in_float64(base, adapter)["lm_head.weight"].double()
    assert torch.equal(found["lm_head.weight"], (0.75 * before + 0.25 * after).to(torch.bfloat16))


def test_the_type_of_the_result_can_be_chosen(tmp_path):
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "a")
    found, config = merge_to(tmp_path / "merged", base, adapter, dtype="float32")
    assert config["dtype"] == "float32"
    exact = in_float64(base, adapter)
    assert all((found[name].double() - value).abs().max() < 1e-8 for name, value in exact.items())


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
)
def test_a_tied_tensor_of_which_one_user_was_tuned_becomes_two(tmp_path, config):
    from transformers import AutoModelForCausalLM

    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = save_adapter(base, tmp_path / "a", **config)
    found, settings = merge_to(tmp_path / "merged", base, adapter)
    assert settings["tie_word_embeddings"] is False
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert nearest(found, in_float64(base, adapter), torch.bfloat16)
    tokens = torch.arange(20)[None]
    merged_model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    logits = merged_model(tokens).logits
    assert (logits - with_peft(base, adapter).float()(tokens).logits).abs().max() < 0.05


def test_a_tied_tensor_that_was_tuned_for_both_stays_one(tmp_path):
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    config = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    adapter = save_adapter(base, tmp_path / "a", **config)
    of_head, of_embedding = "base_model.model.lm_head.lora_", "base_model.model.model.embed_tokens.lora_embedding_"
    twins = {f"{of_head}{one}.weight": f"{of_embedding}{other}" for one, other in ("AB", "BA")}
    resaved(adapter, lambda w: w | {one: w[other].T.contiguous() for one, other in twins.items()})
    found, settings = merge_to(tmp_path / "merged", base, adapter)
    assert settings["tie_word_embeddings"] is True
    exact = in_float64(base, adapter)
    exact.pop("lm_head.weight")
    assert nearest(found, exact, torch.bfloat16)


def test_tokens_that_an_adapter_brings_are_counted_in_the_config(tmp_path):
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = save_adapter(base, tmp_path / "a")
    weights = load_file(adapter / "adapter_model.safetensors")
    more = torch.randn(210, 48, dtype=torch.bfloat16)
    names = [f"base_model.model.{name}.weight" for name in ("model.embed_tokens", "lm_head")]
    save_file(weights | {name: more.clone() for name in names}, adapter / "adapter_model.safetensors")
    found, settings = merge_to(tmp_path / "merged", base, adapter)
    assert (settings["vocab_size"], settings["tie_word_embeddings"]) == (210, True)
    assert torch.equal(found["model.embed_tokens.weight"], more)


@pytest.mark.parametrize(
    ("case", "into"),
    [
        *((case, into) for case in ("plain", "dora", "embeddings") for into in ("original", "nf4")),
        ("turned with dora", "original"),
        ("turned with dora", "nf4"),
    ],
)
def test_what_is_read_does_not_depend_on_how(case, into, tmp_path):
    model, config = CASES[case]
    base = save_model(tmp_path / "base", **model)
    adapter = save_adapter(base, tmp_path / "adapter", **config)
    with opened(base, adapter, merge_into=into) as weights, opened(base, adapter, merge_into=into) as others:
        for tensor in weights.tensors:
            whole = weights.read(tensor, 0, tensor.elements)
            places = [0, 1, 7, tensor.elements // 3, tensor.elements // 2 + 5, tensor.elements]
            with ThreadPoolExecutor(4) as pool:
                parts = list(pool.map(lambda ends, t=tensor: others.read(t, *ends), pairwise(sorted(places))))
            assert np.array_equal(np.concatenate(parts), whole), tensor.name
            weights.release(tensor)
            others.release(tensor)


@pytest.mark.parametrize("into", ["original", "nf4"])
@pytest.mark.parametrize("method", ["nf4", "int8", "cast"])
def test_one_pass_gives_the_bytes_of_two_steps(method, into, tmp_path):
    base = save_model(tmp_path / "base", max_shard_size="20KB")
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=True)
    module, folders = METHODS[method], [tmp_path / "one", tmp_path / "two"]
    given = module.Options(max_shard_size=30_000)
    for folder in folders:
        folder.mkdir()
    with opened(base, adapter, merge_into=into) as weights:
        module.quantize(weights, Output(folders[0]), given, silent())
    merge_to(tmp_path / "merged", base, adapter, merge_into=into)
    with Checkpoint.of(tmp_path / "merged") as weights:
        module.quantize(weights, Output(folders[1]), given, silent())
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert len(one) > 3
    assert one == two


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", TRUTH.values())
def test_dequantized_weights_are_bitsandbytes_bytes(quant_type, double, dtype, tmp_path):
    import bitsandbytes.functional as F

    base = save_model(tmp_path / "base", dtype, hidden_size=64, intermediate_size=101)
    with Checkpoint.of(base) as stored:
        names = {value: key for key, value in SAFETENSORS.items()}
        weights = Dequantized(stored, quant_type, double, next(s for s, n in names.items() if TRUTH[n] == dtype))
        for name, tensor in load_file(base / "model.safetensors").items():
            there = next(t for t in weights.tensors if t.name == name)
            found = torch.from_numpy(weights.read(there, 0, there.elements)).view(dtype).reshape(tensor.shape)
            if is_linear(there):
                packed, state = F.quantize_4bit(tensor, quant_type=quant_type, compress_statistics=double)
                tensor = F.dequantize_4bit(packed, state)
            assert torch.equal(found, tensor), name


def test_a_qlora_adapter_is_merged_where_it_records_that_it_was_trained(tmp_path):
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    asked, _ = merge_to(tmp_path / "asked", base, adapter, merge_into="nf4", bnb_4bit_use_double_quant=False)
    naive, _ = merge_to(tmp_path / "naive", base, adapter)
    recorded = {"options": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}}
    (adapter / "artifact.json").write_text(json.dumps(recorded))
    found, _ = merge_to(tmp_path / "merged", base, adapter)
    assert record([adapter], options(adapter)).into == "nf4"
    assert all(torch.equal(found[name], asked[name]) for name in found)
    assert not any(torch.equal(found[name], naive[name]) for name in found if "proj" in name)


def damaged(weights):
    weights[FIRST][0, 0] = float("nan")
    return weights


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
REFUSED = {
    "another method": (lambda a: edited(a, peft_type="IA3"), "peft_type = 'IA3'"),
    "a changed base": (lambda a: edited(a, init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "single parameters": (lambda a: edited(a, target_parameters=["mlp.experts"]), "target_parameters"),
    "lora_bias": (lambda a: edited(a, lora_bias=True), "lora_bias"),
    "a field of tomorrow": (lambda a: edited(a, use_magic=True), "use_magic"),
    "another rank": (lambda a: edited(a, r=16), "ranks 4 and 4, and adapter_config.json says 16"),
    "a pattern without end": (lambda a: edited(a, rank_pattern={"(a+)+$": 4}), "could take forever"),
    "half of a pair": (lambda a: resaved(a, lambda w: {k: v for k, v in w.items() if k != FIRST}), "lacks lora_A"),
    "no numbers": (lambda a: resaved(a, damaged), "not finite"),
    "unlike its settings": (lambda a: edited(a, use_dora=True), "lora_magnitude_vector"),
    "pickles": (lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), "pickled"),
    "no settings": (lambda a: (a / "adapter_config.json").unlink(), "is no adapter"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused_in_a_sentence(fault, tmp_path):
    break_it, words = REFUSED[fault]
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    break_it(adapter)
    with pytest.raises(SpecError, match=": ") as e:
        merge_to(tmp_path / "merged", base, adapter)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("other", "words"), [({"hidden_size": 64}, "48"), ({"num_hidden_layers": 1}, "does not have")])
def test_an_adapter_for_another_base_names_its_own(other, words, tmp_path):
    adapter = save_adapter(save_model(tmp_path / "base"), tmp_path / "adapter")
    edited(adapter, base_model_name_or_path="acme/big")
    with pytest.raises(SpecError, match="'acme/big'") as e:
        merge_to(tmp_path / "merged", save_model(tmp_path / "other", **other), adapter)
    assert words in str(e.value)


def test_a_packed_base_is_refused_with_what_to_do(tmp_path):
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(SpecError, match="merge into the 16-bit model that it was made from, then quantize"):
        merge_to(tmp_path / "merged", base, adapter)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({}, "adapters"),
        ({"adapters": ["a/b"], "adapter_weights": [1, 2]}, "adapter_weights"),
        ({"adapters": ["/etc"]}, "path"),
        ({"adapters": ["a/b"], "keep": False}, "keep"),
    ],
)
def test_options_that_cannot_be_are_named(stage, words):
    with pytest.raises(SpecError, match=words):
        parse_recipe({"base_model": "a/c", "stages": [{"stage": "merge", **stage}]})


def test_merge_comes_first_and_evaluate_wants_what_it_compares_with():
    merging, nf4 = {"stage": "merge", "adapters": ["a/b"]}, {"stage": "quantize", "method": "nf4"}
    with pytest.raises(SpecError, match="put it first"):
        parse_recipe({"base_model": "a/c", "stages": [nf4, merging]})
    with pytest.raises(SpecError, match="turn it on"):
        parse_recipe({"base_model": "a/c", "stages": [merging | {"keep": False}, nf4, {"stage": "evaluate"}]})


def run(capsys, *argv):
    code = main([*argv, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))


@pytest.mark.usefixtures("_here")
def test_the_command_merges_adapters_of_the_hub_into_the_base_that_they_name(hub, tiny_model, tmp_path, capsys):
    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=TINY)
    edited(adapter, base_model_name_or_path="me/tiny")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "optimizer.pt").write_bytes(b"pickle")
    hub.add_model("me/tiny", tiny_model)
    hub.add_model("me/adapter", adapter)
    done = run(capsys, "merge", "me/adapter", "--output", str(tmp_path / "out"))
    assert done["merged"]["adapters"] == ["me/adapter"]
    assert done["merged"]["into"] == "original"
    artifact = open_artifact(tmp_path / "out")
    assert (artifact.kind, artifact.base_model) == ("merged", "me/tiny")
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    expected, _ = merge_to(tmp_path / "expected", tiny_model, adapter)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    card = build_card(tmp_path / "out", "me/merged")
    assert "base_model_relation: finetune" in card
    assert "(https://huggingface.co/me/adapter/tree/" in card
    assert "merged into the base model's original weights" in card


@pytest.mark.real
@pytest.mark.usefixtures("_here")
def test_a_recipe_merges_quantizes_and_measures_and_keeps_no_copy_where_none_is_wanted(tiny_model, tmp_path, capsys):
    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=TINY)
    prose = tmp_path / "prose.txt"
    prose.write_text("The quick brown fox jumps over the lazy dog. " * 50)
    made = {}
    for keep in (True, False):
        stages = [
            {"stage": "merge", "adapters": [str(adapter)], "merge_into": "nf4", "keep": keep},
            {"stage": "quantize", "method": "int8"},
        ]
        if keep:
            stages.append({"stage": "evaluate", "text": str(prose), "max_seq_length": 32, "num_samples": 2})
        recipe = tmp_path / f"{keep}.yaml"
        recipe.write_text(json.dumps({"base_model": str(tiny_model), "stages": stages}))
        done = run(capsys, "run", str(recipe), "--output", str(tmp_path / str(keep)))
        made[keep] = {Path(one["output"]).name: one for one in done["artifacts"]}
    assert list(made[True]) == ["1-merge", "2-quantize"]
    assert made[True]["1-merge"]["metrics"]["kl_mean"] > 10 * made[True]["2-quantize"]["metrics"]["kl_mean"]
    one, two = tmp_path / "False", tmp_path / "True" / "2-quantize"
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert open_artifact(one).merged == open_artifact(two).merged
    assert open_artifact(one).merged.into == "nf4"
    assert str(tmp_path) not in (one / "artifact.json").read_text() + (one / "recipe.yaml").read_text()
    card = build_card(two, None)
    assert "as NF4 with double quantization leaves them" in card
    assert "than the merged model" in card or "as the merged model does" in card


def test_what_4_bits_would_undo_is_refused_and_auto_merges_where_they_do_not(tiny_model, tmp_path):
    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=TINY)
    quantizing = {"stage": "quantize", "method": "nf4"}

    def recipe(base, *stages):
        return parse_recipe({"base_model": str(base), "stages": list(stages)}, paths=True)

    merging = {"stage": "merge", "adapters": [str(adapter)]}
    with pytest.raises(SpecError, match=r"stages\[0\].merge_into: .*would undo the training"):
        recipe(tiny_model, merging | {"merge_into": "nf4"}, quantizing)
    prepared = prepare(recipe(tiny_model, merging, quantizing), tmp_path / "data", None)
    assert prepared.merging.merge_into == "original"
    prepared = prepare(recipe(tiny_model, merging, quantizing | {"method": "int8"}), tmp_path / "data", None)
    assert prepared.merging.merge_into == "auto"


@pytest.mark.usefixtures("_here")
def test_a_folder_merged_into_nf4_is_not_made_nf4_again(tiny_model, tmp_path, capsys):
    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=TINY)
    out = str(tmp_path / "merged")
    assert main(["merge", str(adapter), "--base", str(tiny_model), "--merge-into", "nf4", "--output", out]) == 0
    capsys.readouterr()
    assert main(["quantize", out, "--method", "nf4", "--output", str(tmp_path / "q")]) == 1
    assert "would undo the training" in capsys.readouterr().err


@pytest.mark.usefixtures("_here")
def test_an_adapter_that_does_not_fit_is_refused_before_a_download(hub, tiny_model, tmp_path, capsys):
    adapter = save_adapter(save_model(tmp_path / "other"), tmp_path / "adapter", target_modules=TINY)
    hub.add_model("me/tiny", tiny_model)
    hub.add_model("me/adapter", adapter)
    assert main(["merge", "me/adapter", "--base", "me/tiny", "--output", str(tmp_path / "out")]) == 1
    assert "'me/tiny' has 64 × 128" in capsys.readouterr().err
    assert not (tmp_path / "data" / "models").exists()


@pytest.mark.usefixtures("_here")
def test_an_adapter_that_names_another_base_wants_to_be_asked_for(hub, tiny_model, tmp_path, capsys):
    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=TINY)
    edited(adapter, base_model_name_or_path="me/original")
    hub.add_model("me/mirror", tiny_model)
    command = ["merge", str(adapter), "--base", "me/mirror", "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "was trained on 'me/original', not on 'me/mirror'" in capsys.readouterr().err
    assert main([*command, "--other-base"]) == 0


@pytest.mark.real
def test_a_qlora_adapter_merged_where_it_was_trained_is_what_was_trained(tmp_path):
    """Next-token distributions in float32: of the merged models, and of the NF4 base with its adapter in PEFT."""
    base = demo_folder(tmp_path / "models", silent())
    adapter = save_adapter(base, tmp_path / "adapter", r=16, lora_alpha=32)
    tuned = qlora(base, adapter)
    kl = {}
    for into in ("nf4", "original"):
        merge_to(tmp_path / into, base, adapter, merge_into=into, bnb_4bit_use_double_quant=True)
        kl[into] = divergence(tmp_path / into, tuned)
    assert kl["nf4"] <= 1e-4
    assert kl["original"] >= 100 * kl["nf4"]


def texts(folder):
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(evaluation_text(), return_tensors="pt")["input_ids"][0]
    return ids[: 8 * 256].reshape(8, 256)


def qlora(base, adapter):
    """Return what the model predicts: log-probabilities of each window, [tokens, vocabulary].

    bitsandbytes unpacks to the type that it computes in: bfloat16, in a training. Its rounding of the weights is wanted
    here, that of the activations would drown what is measured; so the weights are unpacked first.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4, device_map={"": "cpu"})
    tuned = PeftModel.from_pretrained(model.dequantize(), adapter).float().eval()
    with torch.inference_mode():
        return [tuned(window[None]).logits[0].log_softmax(-1) for window in texts(base)]


def divergence(folder, tuned):
    """Return the mean KL(merged ‖ tuned) a token, in nats."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = 0.0
    with torch.inference_mode():
        for window, q in zip(texts(folder.parent / "models" / "demo"), tuned, strict=True):
            p = model(window[None]).logits[0].log_softmax(-1)
            total += (p.exp() * (p - q)).sum(-1).double().mean().item()
    return total / len(tuned)
