"""A head that predicts more tokens at once stays as it is where it is one more block behind those of the model."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.finetune.layers import adaptable
from backend.model_folder import read_config
from backend.models.inspection import inspect
from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.windows import Windows
from backend.quantize.packed import load_unpacked
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.support.family_models import make

pytestmark = pytest.mark.real

IDS = np.random.default_rng(0).integers(2, 500, (4, 32))


@pytest.fixture(params=["GLM-4.6", "DeepSeek V3"])
def model(request, tmp_path):
    folder = make(request.param, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    head = {name.replace(".layers.1.", ".layers.2."): t.clone() for name, t in tensors.items() if ".layers.1." in name}
    head |= {f"model.layers.2.{name}.weight": torch.ones(64, dtype=torch.bfloat16) for name in ("enorm", "hnorm")}
    head["model.layers.2.eh_proj.weight"] = torch.randn(64, 128).bfloat16()
    save_file(tensors | head, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["nf4", "int8", "gptq", "awq"])
def test_it_stays_and_is_named(model, method, tmp_path):
    streams = method in ("nf4", "int8")
    options, made = METHODS[method].Options(**({} if streams else {"group_size": 32})), tmp_path / "made"
    made.mkdir()
    windows = () if streams else (Windows("random", IDS),)
    with Checkpoint.of(model) as weights:
        METHODS[method].quantize(weights, Output(made), options, *windows, silent())
    before, after = load_file(model / "model.safetensors"), load_file(made / "model.safetensors")
    head = [name for name in before if ".layers.2." in name]
    assert len(head) > 10
    assert all(torch.equal(before[name], after[name]) for name in head)
    assert not any(".layers.2." in tensor.name for tensor in adaptable(inspect(str(model))))
    assert "model.layers.2." in str(read_config(made)["quantization_config"]).replace("\\", "")
    loaded = load_causal_lm(made, silent()) if streams else load_unpacked(made, silent())
    with torch.inference_mode():
        assert loaded(input_ids=torch.from_numpy(IDS)).logits.isfinite().all()
