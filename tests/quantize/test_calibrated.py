"""GPTQ and AWQ on tiny random models of every architecture; what is written is read by loops of this file alone."""

import json
import shutil
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.models.loading import device, load_tokenizer
from backend.options import parse
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.architectures import groups_of
from backend.quantize.calibrated.channel_scales import fold_scale
from backend.quantize.calibrated.empty_model import Skeleton
from backend.quantize.calibrated.windows import Windows, check_apart, cut, doubts, text_windows
from backend.quantize.layouts import LAYOUTS
from backend.quantize.layouts.layout import Grid, Scheme
from backend.quantize.packed import load_unpacked
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output, Resumable
from backend.weights.tensor import Tensor
from tests.support.killed_runs import Killed, Mortal

SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 64}
SHARED = SIZES | {"num_key_value_heads": 2}


def configs():
    """A small model of each architecture in the table, and some that are not in it."""
    import transformers as t

    yield "llama", t.LlamaConfig(**SHARED)
    yield "mistral", t.MistralConfig(**SHARED, sliding_window=8)
    yield "qwen2", t.Qwen2Config(**SHARED)
    yield "qwen3", t.Qwen3Config(**SHARED, head_dim=16)
    yield "phi3", t.Phi3Config(**SIZES, num_key_value_heads=4, pad_token_id=0)
    yield "gemma2", t.Gemma2Config(**SHARED, head_dim=16, sliding_window=8)
    yield "gemma3_text", t.Gemma3TextConfig(**SHARED, head_dim=16, sliding_window=8)
    yield "granite", t.GraniteConfig(**SIZES, num_key_value_heads=4)
    yield "olmo2", t.Olmo2Config(**SIZES, num_key_value_heads=4)
    yield "smollm3", t.SmolLM3Config(**SHARED, pad_token_id=0)
    yield "opt", t.OPTConfig(vocab_size=128, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
                             max_position_embeddings=64, word_embed_proj_dim=64)  # fmt: skip
    yield "gpt_neox", t.GPTNeoXConfig(**SIZES)
    yield "gpt2", t.GPT2Config(vocab_size=128, n_positions=64, n_embd=64, n_layer=3, n_head=4)
    yield "starcoder2", t.Starcoder2Config(**SHARED)
    yield "stablelm", t.StableLmConfig(**SHARED)
    yield "bloom", t.BloomConfig(vocab_size=128, hidden_size=64, n_layer=3, n_head=4)
    yield "falcon", t.FalconConfig(**SIZES, alibi=True)
    yield "mpt", t.MptConfig(vocab_size=128, d_model=64, n_layers=3, n_heads=4, max_seq_len=64)
    local = {"attention_types": [[["global", "local", "global"], 1]], "max_position_embeddings": 64}
    yield "gpt_neo", t.GPTNeoConfig(vocab_size=128, hidden_size=64, num_layers=3, num_heads=4, **local)


CONFIGS = dict(configs())
KNOWN = [name for name in CONFIGS if name not in ("starcoder2", "stablelm", "bloom", "falcon", "mpt", "gpt_neo")]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Save a random model whose norms and biases are not those of a new one."""
    from transformers import AutoModelForCausalLM

    made = {}

    def make(name, dtype=torch.float32):
        if (name, dtype) not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype)
            for key, p in model.named_parameters():
                if p.dim() == 1:
                    p.data = p.data + 0.3 * torch.randn_like(p)
                elif "embed" not in key:
                    p.data = 0.15 * torch.randn_like(p)
            folder = tmp_path_factory.mktemp("models") / name
            model.save_pretrained(folder)
            made[name, dtype] = folder
        return made[name, dtype]

    return make


def windows(count=6, length=32):
    return Windows("random", np.random.default_rng(0).integers(0, 128, (count, length)))


def quantized(method, source, folder, output=None, **options):
    folder.mkdir(exist_ok=True)
    module = METHODS[method]
    with Checkpoint.of(source) as weights:
        chosen = module.Options(**{"group_size": 32, **options})
        module.quantize(weights, output or Output(folder), chosen, windows(), silent())
    return chosen


def autogptq(tensors, base, bits):
    """Read AutoGPTQ's layout as its own source writes it, a number at a time; weights come as [in, out]."""
    qweight, qzeros = tensors[f"{base}.qweight"].view(np.uint32), tensors[f"{base}.qzeros"].view(np.uint32)
    scales, g_idx = tensors[f"{base}.scales"].astype(np.float64), tensors[f"{base}.g_idx"]
    outputs = scales.shape[1]

    def stream(words):  # of a column, or of a row of zeros
        text = "".join(format(int(word), "032b")[::-1] for word in words)
        return [int(text[at : at + bits][::-1], 2) for at in range(0, len(text), bits)]

    q = np.array([stream(qweight[:, out]) for out in range(outputs)]).T
    zeros = np.array([stream(row) for row in qzeros]) + 1
    return (q - zeros[g_idx]) * scales[g_idx]


def autoawq(tensors, base):
    """Read AutoAWQ's layout as its GEMM kernel does; weights come as [in, out]."""
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # of the half bytes, by neighbor: AWQ_REVERSE_ORDER

    def spread(words):
        shifts = np.array([4 * place for place in order], np.uint32)
        return ((words.view(np.uint32)[:, :, None] >> shifts) & 15).reshape(len(words), -1).astype(np.int64)

    scales = tensors[f"{base}.scales"].astype(np.float64)
    q, zeros = spread(tensors[f"{base}.qweight"]), spread(tensors[f"{base}.qzeros"])
    group = len(q) // len(scales)
    return (q - zeros.repeat(group, 0)) * scales.repeat(group, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folded_block_computes_what_it_did(model_of, name):
    """Scales over three decades, folded in float64 arithmetic: only rounding of the last digits may differ."""
    source = model_of(name)
    with Checkpoint.of(source) as weights, torch.inference_mode():
        skeleton = Skeleton(weights)
        hidden, calls = skeleton.embed(windows().ids)
        skeleton.fill(1)
        block = skeleton.blocks[1].double()
        args, kwargs = calls[1].at(0, 1, {})
        kwargs = torch.utils._pytree.tree_map(
            lambda v: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v, kwargs
        )
        first = hidden[:1].double()
        before = block(first, *args, **kwargs)
        known = groups_of(CONFIGS[name].to_dict())
        folded = [group for group in known if group.fold] if known else []
        turned = name == "gpt2"
        linears = {f"{linear}.weight" for group in folded for linear in group.linears}
        state = {n: p.T.clone() if turned and n in linears else p.clone() for n, p in block.named_parameters()}
        for group in folded:
            inputs = state[f"{group.linears[0]}.weight"].shape[1]
            scale = torch.logspace(-1.5, 1.5, inputs, dtype=torch.float64)[torch.randperm(inputs)]
            fold_scale(state, group, scale, torch.float64)
        changed = 0
        for n, p in block.named_parameters():
            values = state[n].T if turned and n in linears else state[n]
            changed += not torch.equal(p, values)
            p.copy_(values)
        after = block(first, *args, **kwargs)
        before, after = (out[0] if isinstance(out, tuple) else out for out in (before, after))
        loose = name.startswith("gemma")  # whose norms compute in float32, whatever comes
        assert torch.allclose(before, after, rtol=1e-4 if loose else 1e-9, atol=1e-5 if loose else 1e-10)
        assert bool(changed) == bool(folded)
        assert bool(folded) == (name in KNOWN)


def unpacked(method, tensors, bits=4):
    """Return a folder's tensors with the weights that its integers stand for, [in, out]."""
    found = {key: t for key, t in tensors.items() if key.rpartition(".")[2] in ("weight", "bias")}
    for base in [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]:
        found[f"{base}.weight"] = autogptq(tensors, base, bits) if method == "gptq" else autoawq(tensors, base)
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_an_independent_reader_finds_a_model_like_the_original(model_of, tmp_path, method, name):
    from transformers import AutoModelForCausalLM

    source = model_of(name)
    quantized(method, source, tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    read = unpacked(method, tensors)
    linears = {f"{key.removesuffix('.qweight')}.weight" for key in tensors if key.endswith(".qweight")}
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.from_numpy(windows().ids)
    with torch.inference_mode():
        theirs = original(input_ids=ids).logits
        for key, p in original.named_parameters():
            values = read[{"lm_head.weight": "embed_out.weight"}.get(key, key) if name == "gpt_neox" else key]
            p.copy_(torch.from_numpy(values if key not in linears or name == "gpt2" else values.T))
        ours = original(input_ids=ids).logits
        again = load_unpacked(tmp_path / "q", silent())(input_ids=ids.to(device())).logits.cpu()
    assert (ours - theirs).norm() < 0.7 * theirs.norm()  # in a random model every error grows
    assert not torch.equal(ours, theirs)
    assert torch.allclose(ours, again, atol=1e-4)
    assert len(linears) % 3 == 0
    assert len(linears) >= 12


@pytest.mark.parametrize(("method", "bits"), [("gptq", 2), ("gptq", 3), ("gptq", 4), ("gptq", 8), ("awq", 4)])
def test_what_is_packed_is_what_an_independent_reader_finds(method, bits):
    random = np.random.default_rng(bits)
    layout, scheme = LAYOUTS[method], Scheme(bits, group_size=32)
    grid = Grid(
        random.integers(0, 2**bits, (96, 64)).astype(np.uint8),
        random.normal(size=(96, 2)).astype(np.float16).astype(np.float32),
        random.integers(layout.LOWEST, 2**bits, (96, 2)).astype(np.uint8),
        (np.arange(64) // 32).astype(np.int32),
    )
    packed = {f"layer.{last}": values for last, values in layout.pack(grid, scheme).items()}
    read = autogptq(packed, "layer", bits) if method == "gptq" else autoawq(packed, "layer")
    steps = grid.q.astype(np.int64) - grid.zeros.astype(np.int64).repeat(32, 1)
    assert np.array_equal(read.T, steps * grid.scales.astype(np.float64).repeat(32, 1))
    again = layout.unpack({last.partition(".")[2]: values for last, values in packed.items()}, scheme)
    assert all(np.array_equal(a, b) for a, b in zip(grid, again, strict=True))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gptq", {}),
        ("gptq", {"sym": False, "bits": 3}),
        ("gptq", {"desc_act": True}),
        ("gptq", {"group_size": -1, "max_shard_size": 60_000}),
        ("awq", {"max_shard_size": 60_000}),
        ("w8a8", {"group_size": -1}),
        ("nvfp4", {"group_size": 16, "max_shard_size": 60_000}),
    ],
)
def test_planned_files_are_those_written_to_the_byte(model_of, tmp_path, method, options):
    source = model_of("llama", torch.bfloat16)
    chosen = quantized(method, source, tmp_path / "q", **options)
    with Checkpoint.of(source) as weights:
        planned = chosen.plan(weights.tensors, weights.config).files
    assert planned == {path.name: path.stat().st_size for path in (tmp_path / "q").glob("model*")}


@pytest.mark.parametrize("shard", [10**9, 60_000])
@pytest.mark.parametrize(("method", "size"), [("gptq", 32), ("awq", 32), ("w8a8", -1), ("nvfp4", 16)])
def test_a_run_killed_after_any_block_goes_on_to_the_same_bytes(model_of, tmp_path, method, size, shard):
    source, options = model_of("llama", torch.bfloat16), {"max_shard_size": shard, "group_size": size}
    quantized(method, source, tmp_path / "whole", **options)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for parts in range(1, 5):  # what lies outside of blocks, then three blocks
        folder = tmp_path / f"killed-{parts}"
        folder.mkdir()
        with pytest.raises(Killed):
            quantized(method, source, folder, Mortal(folder, parts), **options)
        again = Resumable(folder)
        quantized(method, source, folder, again, **options)
        again.close()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def test_a_block_that_the_disk_has_lost_is_made_again(model_of, tmp_path):
    source, folder = model_of("llama", torch.bfloat16), tmp_path / "q"
    quantized("gptq", source, tmp_path / "whole")
    folder.mkdir()
    with pytest.raises(Killed):
        quantized("gptq", source, folder, Mortal(folder, 3))
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 4000)
    again = Resumable(folder)
    quantized("gptq", source, folder, again)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_tensors_that_no_model_reads_any_more_are_kept(model_of, tmp_path):
    source = tmp_path / "old"
    shutil.copytree(model_of("llama"), source)
    weights = load_file(source / "model.safetensors")
    kept = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.arange(8, dtype=np.float32) for i in range(3)}
    save_file({**weights, **kept}, source / "model.safetensors", {"format": "pt"})
    quantized("gptq", source, tmp_path / "q")
    found = load_file(tmp_path / "q" / "model.safetensors")
    assert all(np.array_equal(found[name], values) for name, values in kept.items())


@pytest.mark.parametrize("sizes", [(576, "64 or 32 or -1"), (96, "32 or -1")])
def test_a_group_size_that_does_not_divide_is_refused_with_those_that_do(sizes):
    inputs, choices = sizes
    facts = facts_of(f"model.layers.0.mlp.up_proj.weight {inputs} {inputs}")
    with pytest.raises(SpecError, match=rf"group_size: 128 does not divide the {inputs} inputs.*choose {choices}"):
        METHODS["gptq"].Options().check(facts)
    METHODS["gptq"].Options(group_size=32).check(facts)


def facts_of(*tensors, **config):
    parts = [line.split() for line in tensors]
    made = tuple(Tensor(name=name, dtype="BF16", shape=(int(a), int(b))) for name, a, b in parts)
    return ModelFacts(
        model="tiny", architecture="LlamaForCausalLM", model_type="llama", parameters=1, size=1, download=1,
        dtype="bfloat16", layers=2, hidden_size=64, vocab_size=256, tied=False, chat_template=True, tensors=made,
        config={"model_type": "llama", **config},
    )  # fmt: skip


def test_a_layer_that_the_layout_cannot_hold_stays_and_is_named():
    sizes = {"q_proj": "64 64", "k_proj": "16 64", "v_proj": "16 64", "o_proj": "64 64"}
    lines = [f"model.layers.0.self_attn.{name}.weight {size}" for name, size in sizes.items()]
    lines += ["model.layers.0.mlp.down_proj.weight 64 128", "model.layers.0.mlp.gate.weight 4 64"]
    options, facts = METHODS["awq"].Options(group_size=32), facts_of(*lines)
    options.check(facts)
    planned = options.plan(facts.tensors, facts.config)
    packed = {name.removesuffix(".qweight") for shard in planned.shards for name in shard.names if "qweight" in name}
    assert packed == {"model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"}
    assert "3 layers stay as they are" in planned.doubts[0]
    assert "'self_attn.k_proj' 16×64" in planned.doubts[0]
    settings = options.config(facts.tensors, facts.config)["quantization_config"]
    stays = [f"layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate")]
    assert settings["modules_to_not_convert"] == stays


def test_a_model_whose_layers_cannot_be_packed_is_refused():
    with pytest.raises(SpecError, match=r"40 inputs and 64 outputs.*choose method nf4"):
        METHODS["gptq"].Options().check(facts_of("model.layers.0.mlp.up_proj.weight 64 40"))


def test_autoawqs_own_names_are_understood():
    options = METHODS["awq"].Options
    given = parse(options, {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"})
    assert given == options(bits=4, group_size=64)
    for wrong in ({"version": "gemv"}, {"zero_point": False}, {"w_bit": 4, "bits": 4}):
        with pytest.raises(SpecError):
            parse(options, wrong)
    for wrong in ({"bits": 3}, {"w_bit": "3"}):
        with pytest.raises(SpecError, match="AWQ's layout holds 4, not 3: choose method gptq"):
            parse(options, wrong)


def test_windows_are_full_and_begin_as_the_tokenizer_begins():
    found = cut("text", [[1, 2, 3], [4, 5, 6, 7, 8]], [0], 10, 4)
    assert found.ids.tolist() == [[0, 1, 2, 3], [0, 4, 5, 6]]
    assert cut("text", [list(range(100))], [], 2, 10).ids.tolist() == [list(range(10)), list(range(50, 60))]
    with pytest.raises(SpecError, match="'text' has 3 tokens, fewer than one window of 10"):
        cut("text", [[1, 2, 3]], [], 2, 10)


GERMAN = "Die Bäckerei am Markt öffnet um sechs Uhr, und vor der Tür stehen schon die ersten Kunden. "
ENGLISH = "The bakery at the market opens at six, and the first customers are waiting in front of its door already. "
CODE = "def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n"


def test_a_hurried_calibration_is_doubted(tiny_model):
    found = doubts(Windows("text", np.ones((4, 16), np.int64)), load_tokenizer(tiny_model), None)
    assert len(found) == 2
    assert "64 tokens" in found[0]
    assert "3 of 4" in found[1]


@pytest.mark.parametrize(("measured", "doubted"), [(GERMAN * 9, False), (ENGLISH * 9, True), (CODE * 9, False)])
def test_another_language_than_quality_is_measured_in_is_doubted(tiny_model, measured, doubted):
    tokenizer = load_tokenizer(tiny_model)
    read = text_windows("text", "".join(f"{i}. {GERMAN}" for i in range(200)), tokenizer, 128, 128)
    said = doubts(read, tokenizer, measured)
    assert ["Calibration reads German, quality is measured in English" in text for text in said] == [True] * doubted


def test_nobody_calibrates_on_what_quality_is_measured_on(tiny_model):
    tokenizer, numbered = load_tokenizer(tiny_model), "".join(f"{i}. {ENGLISH}" for i in range(200))
    read = text_windows("text", numbered, tokenizer, 32, 128)
    check_apart(read, tokenizer, "".join(f"{i}. {GERMAN}" for i in range(200)))
    with pytest.raises(SpecError, match="32 of the 32 calibration windows of 'text' stand in the text"):
        check_apart(read, tokenizer, f"Before it.\n{numbered}")


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_takes_the_bits_that_it_holds_and_no_others(method, layout):
    for bits in get_args(METHODS[method].Options.model_fields["bits"].annotation):
        if bits in LAYOUTS[layout].BITS:
            assert METHODS[method].Options(layout=layout, bits=bits).written is LAYOUTS[layout]
        else:
            with pytest.raises(ValueError, match=f"bits: the layout {layout} holds .*, not {bits}: choose"):
                METHODS[method].Options(layout=layout, bits=bits)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_folder_in_another_version_of_a_layout_is_refused_in_words(model_of, tmp_path, method):
    quantized(method, model_of("llama"), tmp_path / "q")
    written = json.loads((tmp_path / "q" / "config.json").read_text())
    settings = written["quantization_config"]
    for other, words in ({"checkpoint_format": "marlin"}, "'marlin'"), ({"bits": 5}, "5 bits"):
        (tmp_path / "q" / "config.json").write_text(json.dumps(written | {"quantization_config": settings | other}))
        with pytest.raises(SpecError, match=words):
            load_unpacked(tmp_path / "q", silent())
