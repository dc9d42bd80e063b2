"""GPTQ and AWQ of every family that people pick: experts one by one, hybrids, and the text model of a wrapper alone."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend.models.inspection import inspect
from backend.models.loading import load_causal_lm
from backend.models.rewriting import config_json
from backend.progress import Report, silent
from backend.quantize import METHODS
from backend.quantize.calibrated.architectures import groups_of
from backend.quantize.calibrated.block_layers import Layers
from backend.quantize.calibrated.channel_scales import fold_scale
from backend.quantize.calibrated.empty_model import Skeleton, as_mapping
from backend.quantize.calibrated.windows import Windows
from backend.quantize.layouts.layout import Scheme
from backend.quantize.packed import load_unpacked
from backend.weights.anatomy import is_beside, is_expert, is_linear
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output, Resumable
from tests.support.family_models import FAMILIES, REFUSED, inputs, make
from tests.support.killed_runs import Killed, Mortal

pytestmark = pytest.mark.real

IDS = np.random.default_rng(0).integers(2, 512, (4, 32))
PLAIN = {"scale_search": False, "clip_search": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("families"), {}

    def model(name):
        if name not in made:
            made[name] = make(name, folder / name.replace(" ", "_"))
        return made[name]

    return model


def quantized(folder, method, output, **given):
    options = METHODS[method].Options(group_size=32, **given)
    facts = inspect(str(folder))
    options.check(facts)
    output.mkdir()
    with Checkpoint.of(folder) as weights:
        METHODS[method].quantize(weights, Output(output), options, Windows("random", IDS), silent())
    planned = options.plan(facts.tensors, facts.config).files
    changes = options.config(facts.tensors, facts.config)
    planned["config.json"] = len(config_json(facts.config, facts.tensors, changes))
    assert {path.name: path.stat().st_size for path in output.iterdir()} == planned
    return options, facts


def matrices(options, facts, source):
    """Yield each linear layer that is packed: its name in the result, and its weight."""
    packing = options.form(facts.tensors, facts.config)
    for tensor in packing.layers:
        if not packing.skips(tensor):
            for matrix, part in packing.matrices.of(tensor).items():
                whole = source[tensor.name]
                alone = whole.T if packing.matrices.transposed else whole
                yield matrix.name, packing.matrices.view(whole, part, matrix.shape[0]) if part else alone


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_layer_is_rounded_and_all_else_is_as_it_was(name, models, tmp_path):
    """Without scales an integer stands for the weight itself: another one's would differ by more than its size."""
    folder, made = models(name), tmp_path / "gptq"
    options, facts = quantized(folder, "gptq", made, **PLAIN)
    source, found = load_file(folder / "model.safetensors"), load_numbers_of(made)
    packed = dict(matrices(options, facts, source))
    for key, weight in packed.items():
        base = key.removesuffix("weight")
        there = {last: found.pop(base + last) for last in options.written.TENSORS}
        ours = torch.from_numpy(options.written.unpack(there, Scheme(4, 32)).weight())
        assert 0.02 < (ours - weight.float()).norm() / weight.float().norm() < 0.3, key
    left = load_file(made / "model.safetensors")
    assert all(torch.equal(left[key], source[key]) for key in found)
    experts = [t for t in facts.tensors if is_expert(t)]
    assert any(".experts." in key for key in packed) == bool(experts)
    assert not any(t.name in found for t in experts)
    assert all(t.name in found for t in facts.tensors if is_beside(t.name) or not (is_linear(t) or is_expert(t)))


def load_numbers_of(folder):
    """Return the tensors of a result that NumPy has a type for, and None for others."""
    with torch.inference_mode():
        tensors = load_file(folder / "model.safetensors")
    return {name: None if t.dtype == torch.bfloat16 else t.numpy() for name, t in tensors.items()}


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_result_says_what_the_model_does(name, method, models, tmp_path):
    folder = models(name)
    quantized(folder, method, tmp_path / method)
    theirs, ours = load_causal_lm(folder, silent()), load_unpacked(tmp_path / method, silent())
    assert type(theirs) is type(ours)
    before, after = (logits(model, inputs(name, torch.from_numpy(IDS))) for model in (theirs, ours))
    assert 0 < (after - before).norm() / before.norm() < 0.7  # in a random model every error grows


def logits(model, given):
    cast = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in given.items()}
    with torch.inference_mode():
        return model(**cast).logits.float()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_folded_block_computes_what_it_did(name, models):
    with Checkpoint.of(models(name)) as weights, torch.inference_mode():
        skeleton = Skeleton(weights)
        hidden, calls = skeleton.embed(IDS)
        known = groups_of(as_mapping(skeleton.config)) or ()
        packing = METHODS["gptq"].Options(group_size=32).form(weights.tensors, weights.config)
        shared = {}
        for index, call in enumerate(calls):
            block = skeleton.fill(index)
            block.module.float()
            layers = Layers(block, packing)
            groups = [group for group in map(layers.there, known) if group and group.fold]
            if not groups:
                continue
            args, kwargs = torch.utils._pytree.tree_map(
                lambda v: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v,
                call.at(0, 1, shared),
            )
            before = call.hand_on(layers.module(call.as_given(hidden[:1].float()), *args, **kwargs), 0, shared)
            state = layers.state()
            for group in groups:
                inputs = state[f"{group.linears[0]}.weight"].shape[1]
                fold_scale(state, group, torch.logspace(-1, 1, inputs)[torch.randperm(inputs)], torch.float32)
            layers.put((layers.names[key], values.numpy()) for key, values in state.items())
            after = call.hand_on(layers.module(call.as_given(hidden[:1].float()), *args, **kwargs), 0, shared)
            assert (after - before).norm() < 1e-3 * before.norm()


def test_nearly_all_that_people_quantize_is_among_these(capsys):
    total = sum(family.quantize for family in FAMILIES.values())
    for methods, least in (({"gptq", "awq"}, 95), ({"nf4", "int8", "fp8", "mxfp4", "cast"}, 97)):
        works = (family.quantize for name, family in FAMILIES.items() if not methods & REFUSED.get(name, {}).keys())
        share = 100 * sum(works) / total
        with capsys.disabled():
            sys.stdout.write(f"\nOf what people quantize, {share:.1f} % works in {', '.join(sorted(methods))}.\n")
        assert share >= least


def written(folder, output, windows=IDS, report=None):
    method = METHODS["gptq"]
    with Checkpoint.of(folder) as weights:
        method.quantize(weights, output, method.Options(group_size=32), Windows("random", windows), report or silent())


@pytest.mark.parametrize("name", ["Qwen3 MoE", "gpt-oss", "Gemma 4", "GLM-5"])
def test_a_killed_run_goes_on_to_the_same_bytes(name, models, tmp_path):
    """With experts one by one and in one tensor, and with what blocks hand on beside their outputs."""
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    written(models(name), Output(tmp_path / "whole"))
    with pytest.raises(Killed):
        written(models(name), Mortal(tmp_path / "killed", 2))
    again = Resumable(tmp_path / "killed")
    written(models(name), again)
    again.close()
    whole, killed = (tmp_path / folder / "model.safetensors" for folder in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_experts_that_see_too_few_tokens_hear_others_and_the_log_says_so(models, tmp_path):
    events = []
    written(models("Qwen3 MoE"), Output(tmp_path), IDS[:1, :4], Report(events.append))
    said = [event["text"] for event in events if event["event"] == "log"]
    assert sum("of 4 experts saw too few tokens and heard others of their layer" in text for text in said) == 2
