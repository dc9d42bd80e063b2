"""Weights that lack what their config speaks of are refused from their headers; what is whole is not."""

import json
import tracemalloc
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import SpecError
from backend.models.completeness import check_complete
from backend.models.config import check_config
from backend.models.fetch import check_model
from backend.models.loading import load_causal_lm, refuse_made_up
from backend.progress import silent
from backend.weights.anatomy import block_of
from backend.weights.tensor import Tensor
from tests.support.paper_models import CONFIG

COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
SIZES = {
    "llama": GATED,
    "qwen2": GATED,
    "gemma2": GATED,
    "mixtral": GATED | {"num_local_experts": 4},
    "qwen3_moe": GATED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 48},
    "bloom": {},
    "stablelm": {"num_key_value_heads": 2, "intermediate_size": 48},
    "starcoder2": {"num_key_value_heads": 2, "intermediate_size": 48},
    "cohere": {"num_key_value_heads": 2, "intermediate_size": 48},
}


@pytest.fixture(scope="module", params=SIZES)
def whole(request, tmp_path_factory):
    """A model as transformers saves it, of each of these types."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **COMMON | SIZES[request.param])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def changed(whole, folder, change=lambda tensors: tensors, **fields):
    """Write a model anew with other tensors or other fields in its config."""
    folder.mkdir()
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    save_file(change(load_file(whole / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(*endings):
    return lambda tensors: {name: t for name, t in tensors.items() if not name.endswith(endings)}


def test_what_transformers_saves_is_whole(whole):
    check_model(whole)


def test_layers_that_only_the_config_has_are_refused(whole, tmp_path):
    layers = next(name for name in ("num_hidden_layers", "n_layer") if name in (whole / "config.json").read_text())
    with pytest.raises(SpecError, match="40 layers, and layer 2 is missing in the weights, which hold 2"):
        check_model(changed(whole, tmp_path / "m", **{layers: 40}))


def test_any_one_matrix_of_a_layer_that_is_missing_is_named(whole, tmp_path):
    matrices = [n for n, t in load_file(whole / "model.safetensors").items() if block_of(n) == 1 and t.dim() == 2]
    for index, name in enumerate(matrices):
        with pytest.raises(SpecError, match=f"'{name.partition('.1.')[2]}' of layer 1 is missing in the weights"):
            check_model(changed(whole, tmp_path / str(index), without(name)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "module."),
        ("", "_orig_mod."),
        ("", "base_model.model."),
        ("layers.0.", "layers.0._orig_mod."),
        ("layers.1.", "layers.1._fsdp_wrapped_module."),
        ("o_proj.", "o_proj.base_layer."),
    ],
)
@pytest.mark.parametrize("whole", ["llama", "stablelm", "cohere"], indirect=True)
def test_names_that_something_around_the_model_gave_are_refused(whole, before, after, tmp_path):
    def renamed(tensors):
        return {name.replace(before, after, 1): tensor for name, tensor in tensors.items()}

    with pytest.raises(SpecError, match=f"^'.*{after}.*' is a name that something around the model gave"):
        check_model(changed(whole, tmp_path / "m", renamed))


def test_embeddings_and_head_must_be_there(whole, tmp_path):
    embeddings = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
    with pytest.raises(SpecError, match=r"input embeddings is missing|output head is missing"):
        check_model(changed(whole, tmp_path / "a", without(*embeddings)))
    with pytest.raises(SpecError, match=r"output head is missing .* set tie_word_embeddings"):
        check_model(
            changed(whole, tmp_path / "b", without("lm_head.weight", "embed_out.weight"), tie_word_embeddings=False)
        )


def test_buffers_and_layers_for_more_tokens_do_not_matter(whole, tmp_path):
    def more(tensors):
        old = {"rotary_emb.inv_freq": torch.ones(4), "attn.masked_bias": torch.ones(1)}
        first = next(name for name in tensors if ".0." in name).partition(".0.")[0]
        inside = {name: t for name, t in tensors.items() if name.startswith(f"{first}.0.")}
        predicting = {name.replace(f"{first}.0.", f"{first}.2."): t.clone() for name, t in inside.items()}
        return tensors | {f"{first}.0.{name}": t for name, t in old.items()} | predicting

    check_model(changed(whole, tmp_path / "m", more, num_nextn_predict_layers=1))


@pytest.mark.parametrize(
    ("whole", "fields", "words"),
    [
        ("llama", {"intermediate_size": 64}, "48 × 32 numbers, and 'config.json' speaks of 64 × 32"),
        ("llama", {"num_key_value_heads": 4}, "speaks of 32 × 32"),
        ("qwen2", {"vocab_size": 100}, "'model.embed_tokens.weight' has 96 × 32 numbers"),
        ("gpt2", {"n_inner": 64}, "speaks of 32 × 64"),
        ("opt", {"ffn_dim": 40}, "speaks of 40 × 32"),
        ("stablelm", {"intermediate_size": 40}, "has 32 × 48 numbers, and 'config.json' speaks of hidden_size = 32"),
        ("starcoder2", {"intermediate_size": 40}, "speaks of hidden_size = 32, intermediate_size = 40"),
        ("cohere", {"intermediate_size": 40}, "speaks of hidden_size = 32, intermediate_size = 40"),
        ("mixtral", {"num_local_experts": 8}, "'block_sparse_moe.experts.4"),
        ("qwen3_moe", {"num_experts": 6}, "'mlp.experts.4"),
    ],
    indirect=["whole"],
)
def test_other_sizes_than_the_config_says_are_refused(whole, tmp_path, fields, words):
    with pytest.raises(SpecError, match=words):
        check_model(changed(whole, tmp_path / "m", **fields))


@pytest.mark.parametrize("whole", sorted(SIZES.keys() - {"stablelm", "starcoder2", "cohere"}), indirect=True)
def test_norms_that_all_layers_lack_are_missed(whole, tmp_path):
    with pytest.raises(SpecError, match="is missing in the weights"):
        check_model(changed(whole, tmp_path / "m", without("norm.weight", "ln_1.weight", "ln_f.weight")))


@pytest.mark.parametrize("number", ["999999999", "9" * 20, "9" * 5000])
@pytest.mark.parametrize("place", ["more.{}.weight", "model.layers.0.experts.{}.weight"])
def test_numbers_in_names_decide_over_no_memory(number, place):
    layer = {"input_layernorm": (64,), "self_attn.q_proj": (64, 64)}
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in (0, 1) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (256, 64), "lm_head.weight": (256, 64), place.format(number): (8, 64)}
    config = check_config(CONFIG | {"model_type": "arcee"})
    tracemalloc.start()
    with suppress(SpecError):
        check_complete(config, [Tensor(name=name, dtype="BF16", shape=shape) for name, shape in shapes.items()])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2_000_000


@pytest.mark.parametrize("whole", ["llama"], indirect=True)
def test_what_transformers_has_made_up_is_an_error(whole, tmp_path):
    broken = changed(whole, tmp_path / "m", without("layers.1.self_attn.q_proj.weight"))
    with pytest.raises(SpecError, match=r"'model.layers.1.self_attn.q_proj.weight' is missing .* random numbers"):
        load_causal_lm(broken, silent())
    with pytest.raises(SpecError, match="random numbers"):
        refuse_made_up({"missing_keys": set(), "mismatched_keys": {("lm_head.weight", (2, 2), (3, 3))}}, "model")


ODD = (
    "bloom", "codegen", "cohere2", "ctrl", "falcon", "gemma3n_text", "gptj", "lfm2", "mamba", "modernbert-decoder",
    "mpt", "olmo", "openai-gpt", "phi3", "qwen3_5_text", "recurrent_gemma", "rwkv", "smollm3", "starcoder2", "xglm",
    "zamba2",
)  # fmt: skip
"""Types whose blocks are of several kinds, use what others hold, or are called in ways of their own."""


@pytest.mark.parametrize("kind", ODD)
def test_what_transformers_builds_by_default_is_whole(kind):
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind]())
    said = json.loads(json.dumps(model.config.to_dict(), default=str))
    config = check_config({**said, "architectures": [type(model).__name__]})
    tied = set(model.all_tied_weights_keys)
    stored = [(name, tuple(t.shape)) for name, t in model.state_dict().items() if name not in tied]
    check_complete(config, [Tensor(name=name, dtype="BF16", shape=shape) for name, shape in stored])
