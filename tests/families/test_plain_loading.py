"""What the table of readers says of plain transformers is what that does; what it does not load, our chat unpacks."""

import json
import os
import re
import subprocess
from contextlib import suppress

import numpy as np
import pytest
import torch

from backend.errors import SpecError
from backend.model_folder import read_config
from backend.models.config import auto_class_name, text_type
from backend.models.loading import auto_class
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.empty_model import _find_blocks
from backend.quantize.calibrated.filling import Filler
from backend.quantize.calibrated.windows import Windows
from backend.quantize.compressed_tensors import UNPACKED
from backend.quantize.engine_rounding import round_as_engines
from backend.quantize.formats import _ELSEWHERE, _IN_ONE, _TAKEN_APART, readers
from backend.quantize.matrices import Matrices, is_single
from backend.quantize.packed import load, unpacked_bytes
from backend.serve.engines import choose
from backend.serve.engines.transformers_server import _load_whole_models_alone
from backend.weights.anatomy import is_expert
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from backend.weights.tensor import Tensor
from tests.families.test_anatomy import TAKEN, built
from tests.support.card_lines import OVERLAY
from tests.support.family_models import FAMILIES, make, picture

pytestmark = pytest.mark.real

IDS = np.random.default_rng(0).integers(2, 500, (4, 32))
MIXTURES = [name for name in FAMILIES if any("expert" in key for key in FAMILIES[name].text)]
CASES = {
    "gptq": ("gptq", {"layout": "gptq", "group_size": 32}),
    "awq": ("awq", {"layout": "awq", "group_size": 32}),
    "packed": ("w4a16", {"group_size": 32}),
    "with zeros": ("awq", {"layout": "compressed-tensors", "group_size": 32}),
    "fp8": ("fp8", {}),
    "mxfp4": ("mxfp4", {}),
    "w8a8": ("w8a8", {}),
    "nvfp4": ("nvfp4", {}),
}


def quantized(name, case, folder):
    """Write a family's tiny model, with experts that count, in a format."""
    method, given = CASES[case]
    source, made = make(name, folder / "source"), folder / "made"
    made.mkdir()
    louder(source)
    options = METHODS[method].Options(**given)
    with Checkpoint.of(source) as weights:
        read = [] if options.streams else [Windows("random", IDS)]
        METHODS[method].quantize(weights, Output(made), options, *read, silent())
    return made


def louder(source):
    """Have experts say more of an answer than rounding does."""
    from safetensors.torch import load_file, save_file

    [path] = source.glob("*.safetensors")
    found = load_file(path)
    save_file(
        {key: 8 * t if ".experts." in key and t.dim() > 1 else t for key, t in found.items()}, path, {"format": "pt"}
    )


def logits(model, name):
    inputs = {"input_ids": torch.from_numpy(IDS[:1])} if FAMILIES[name].tower is None else picture(name)
    cast = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    with torch.inference_mode():
        return model(**cast).logits.float()


def plainly(folder, name, **options):
    """Return the logits that from_pretrained alone comes to; None where it fails, or says that it made up weights."""
    try:
        model, found = auto_class(read_config(folder)).from_pretrained(folder, output_loading_info=True, **options)
    except RuntimeError:
        return None
    return None if found["missing_keys"] or found["mismatched_keys"] else logits(model, name)


def is_read(folder, name):
    """Return whether transformers computes what our reader does, told what the table says."""
    from transformers import CompressedTensorsConfig

    # told to unpack all of it, it computes inputs in 16 bit as we do
    theirs = plainly(folder, name, quantization_config=CompressedTensorsConfig(dequantize=True))
    ours = logits(load(folder, silent()), name)
    return theirs is not None and ((theirs - ours).norm() < 0.01 * ours.norm()).item()


@pytest.mark.parametrize(
    ("name", "case"),
    [("Qwen3 MoE", case) for case in CASES if case not in ("gptq", "awq")]
    + [(name, "packed" if name == "DeepSeek V4" else "fp8") for name in MIXTURES if name != "Qwen3 MoE"],
)
def test_transformers_loads_a_mixture_where_the_table_says_so_and_nowhere_else(name, case, tmp_path):
    made = quantized(name, case, tmp_path)
    reading = readers(read_config(made))["transformers"]
    assert is_read(made, name) is not bool(reading.refusal)
    if not reading.refusal:
        assert (plainly(made, name) is None) == (reading.told == UNPACKED)


@pytest.fixture
def unhooked(monkeypatch):
    """Take back what a server changes of transformers."""
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", PreTrainedModel.__dict__["from_pretrained"])


@pytest.mark.parametrize(
    ("name", "case"),
    [("gpt-oss", "gptq"), ("Llama 4", "awq"), ("Gemma 4 MoE", "fp8"), ("Qwen3 MoE", "nvfp4"), ("Qwen3 MoE", "packed")],
)
def test_the_chat_computes_what_evaluate_does_whatever_transformers_loads(name, case, tmp_path, unhooked):
    made = quantized(name, case, tmp_path)
    measured = load(made, silent())
    round_as_engines(measured, made)
    ours = logits(measured, name)
    _, why = choose(made, "transformers")
    held = readers(read_config(made))["transformers"].refusal
    assert ("unpacked to 16 bit by Weightsmith: " in why) == bool(held)
    _load_whole_models_alone(made)
    served = auto_class(read_config(made)).from_pretrained(made, dtype="auto")
    assert torch.equal(logits(served, name), ours)
    if held:
        assert unpacked_bytes(made) == pytest.approx(sum(p.nbytes for p in served.parameters()), rel=1e-3)


SCRIPT = """
import json, sys, torch, transformers
transformers.logging.set_verbosity_error()
found = {}
for folder, kind in json.loads(sys.argv[1]).items():
    inputs = torch.load(f"{folder}/inputs.pt")
    try:
        model, said = getattr(transformers, kind).from_pretrained(folder, device_map="auto", output_loading_info=True)
        ours = torch.load(f"{folder}/ours.pt")
        with torch.inference_mode():
            theirs = model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}).logits
        found[folder] = not said["missing_keys"] and ((theirs - ours).norm() / ours.norm()).item() < 0.05
    except (RuntimeError, AttributeError, UnboundLocalError):
        found[folder] = False
print(json.dumps(found))
"""
"""Loads folders with nothing but transformers and the packages that cards name."""


def test_gptq_and_awq_load_with_their_packages_where_the_table_says_so(tmp_path):
    """Of a wrapper, of hybrids with layers that stay in 16 bit, of a mixture, and of types that are read otherwise."""
    asked, said = {}, {}
    for name in ("Qwen3-VL", "Qwen3.5 dense", "Gemma 4", "Qwen3 MoE", "GPT-2", "GPT-NeoX"):
        for case in ("gptq", "awq"):
            made = quantized(name, case, tmp_path / f"{name}-{case}")
            config = read_config(made)
            inputs = {"input_ids": torch.from_numpy(IDS[:1])} if FAMILIES[name].tower is None else picture(name)
            torch.save(inputs, made / "inputs.pt")
            torch.save(logits(load(made, silent()), name), made / "ours.pt")
            asked[str(made)] = auto_class_name(config)
            said[str(made)] = not readers(config)["transformers"].refusal
    env = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    command = [str(OVERLAY / "bin" / "python"), "-c", SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == said


def test_the_types_that_are_read_otherwise_are_those_of_transformers_and_optimum():
    """Of all types, by the names that experts have in files and in our results, and by where optimum looks."""
    [constants] = OVERLAY.glob("lib/python*/site-packages/optimum/gptq/constants.py")
    places = re.findall(r'"([\w.]+)"', constants.read_text().partition("BLOCK_PATTERNS")[2].partition("]")[0])
    in_one, elsewhere = set(), set()
    for kind in TAKEN:
        for model in built(kind):
            if not all(_reads_experts(model)):
                in_one.add(text_type(model.config.to_dict()))
            with suppress(SpecError):  # it has no blocks, and is refused
                path, _ = _find_blocks(model, kind)
                modules = [name for name, _ in model.named_modules()]
                first = next((place for place in places if any(name.startswith(place) for name in modules)), None)
                elsewhere |= {kind} if first != path else set()
    assert in_one == _IN_ONE | _TAKEN_APART
    assert elsewhere == _ELSEWHERE


def _reads_experts(model):
    """Yield whether transformers reads the matrices of the first experts, as they lie by themselves."""
    from transformers.core_model_loading import revert_weight_conversion

    matrices, state = Matrices(model.config.to_dict()), revert_weight_conversion(model, model.state_dict())
    tensors = [Tensor(name=name, dtype="BF16", shape=tuple(value.shape)) for name, value in state.items()]
    found = [matrix.name for tensor in tensors if is_expert(tensor) for matrix in matrices.of(tensor)]
    singles = [name for name in found if is_single(name)][:6]
    filler = Filler(model, singles)
    return map(filler.reads, singles)
