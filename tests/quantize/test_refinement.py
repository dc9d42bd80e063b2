"""Refinement: scales are trained on whole tiny models; what is written is read by the reader of all packed folders."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend.models.loading import load_causal_lm
from backend.progress import Report, silent
from backend.quantize import METHODS
from backend.quantize.calibrated import refinement
from backend.quantize.calibrated.block_files import Shards
from backend.quantize.calibrated.distillation import _Divergence
from backend.quantize.calibrated.empty_model import Skeleton
from backend.quantize.calibrated.numbers import Numbers
from backend.quantize.calibrated.packed_weight import PackedWeight
from backend.quantize.calibrated.repacking import repack
from backend.quantize.calibrated.windows import Windows
from backend.quantize.layouts.layout import Grid
from backend.quantize.packed import load_unpacked
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output, Resumable
from tests.support.killed_runs import Killed, Mortal
from tests.support.saved_models import THREE_BLOCKS, save

SCALES = ("scales", "weight_scale")
LAYOUTS = [("gptq", {}), ("gptq", {"desc_act": True}), ("awq", {}), ("gptq", {"layout": "compressed-tensors"})]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    from transformers import AutoConfig

    made = {}

    def make(kind, dtype=torch.bfloat16):
        if (kind, dtype) not in made:
            config = AutoConfig.for_model(kind, **THREE_BLOCKS[kind])
            made[kind, dtype] = save(config, tmp_path_factory.mktemp("models") / kind, dtype)
        return made[kind, dtype]

    return make


def text(count=24, held=4):
    ids = np.random.default_rng(0).integers(0, 128, (count + held, 32))
    return Windows("random", ids[:count], ids[count:])


def quantized(source, folder, method="gptq", output=None, report=None, windows=None, **options):
    folder.mkdir(exist_ok=True)
    chosen = METHODS[method].Options(**{"group_size": 32, "refine": True, **options})
    with Checkpoint.of(source) as weights:
        METHODS[method].quantize(weights, output or Output(folder), chosen, windows or text(), report or silent())
    return chosen


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def distance(source, folder, ids):
    """Return the mean KL divergence between all next tokens, in nats."""
    original, result = load_causal_lm(source, silent()), load_unpacked(folder, silent())
    with torch.inference_mode():
        ids = torch.from_numpy(ids).to(original.device)
        p, q = (model(input_ids=ids).logits.double().log_softmax(-1) for model in (original, result))
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.parametrize(("method", "options"), LAYOUTS)
def test_only_scales_change_and_the_whole_model_says_more_nearly_what_it_said(model_of, tmp_path, method, options):
    source = model_of("llama")
    heard = []
    quantized(source, tmp_path / "before", method, refine=False, **options)
    quantized(source, tmp_path / "after", method, report=Report(heard.append), **options)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.rpartition(".")[2] in SCALES for name in changed)
    assert distance(source, tmp_path / "after", text().held) < distance(source, tmp_path / "before", text().held)
    assert "The scales are refined: KL divergence" in str(heard)
    assert contents(tmp_path / "before")["config.json"] == contents(tmp_path / "after")["config.json"]


def test_a_result_that_training_makes_worse_stays_as_it_was(model_of, tmp_path, monkeypatch):
    source, heard = model_of("llama"), []
    monkeypatch.setattr(refinement, "LEARNING_RATE", 2.0)
    quantized(source, tmp_path / "before", refine=False)
    quantized(source, tmp_path / "after", report=Report(heard.append))
    assert contents(tmp_path / "after") == contents(tmp_path / "before")
    assert "The scales stay as they were calibrated" in str(heard)


@pytest.mark.parametrize(
    ("kind", "windows", "words"),
    [
        ("qwen3_moe", text(), "those of a mixture's experts are not trained here"),
        ("llama", text(held=0), "there is too little calibration text to hold some of it back"),
    ],
)
def test_what_cannot_be_refined_stays_and_the_log_says_why(model_of, tmp_path, kind, windows, words):
    heard = []
    quantized(model_of(kind), tmp_path / "q", report=Report(heard.append), windows=windows)
    assert f"The scales are not refined: {words}" in str(heard).replace('"', "'")
    assert "refining" not in str(heard)


def test_a_model_that_torch_cannot_train_stays_as_it_was_calibrated(model_of, tmp_path, monkeypatch):
    def fails(*args):
        raise NotImplementedError("derivative for aten::something is not implemented")

    source, heard = model_of("llama"), []
    monkeypatch.setattr(refinement, "divergence", fails)
    quantized(source, tmp_path / "before", refine=False)
    quantized(source, tmp_path / "after", report=Report(heard.append))
    assert contents(tmp_path / "after") == contents(tmp_path / "before")
    assert "it stays as it was calibrated" in str(heard)


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        *(("llama", *layout) for layout in LAYOUTS),
        *(("gpt2", *layout) for layout in LAYOUTS[:-1]),  # compressed-tensors has no layers that are kept turned
    ],
)
def test_the_model_that_is_trained_is_bit_for_bit_the_one_that_is_read(model_of, tmp_path, kind, method, options):
    source, folder = model_of(kind), tmp_path / "q"
    chosen = quantized(source, folder, method, refine=False, **options)
    ids = torch.from_numpy(text().held)
    with Checkpoint.of(source) as weights:
        skeleton, shards = Skeleton(weights), Shards(weights, Output(folder), chosen, "")
        model = skeleton.whole().requires_grad_(False)
        packed = refinement.pack(skeleton, shards, chosen)
        torch.manual_seed(0)
        for weight in packed.values():
            weight.change.data.normal_(std=0.1)
        shards.rewrite(refinement.trained(skeleton, shards, packed), "by chance")
    with torch.inference_mode():
        ids = ids.to(model.device)
        assert torch.equal(model(input_ids=ids).logits, load_unpacked(folder, silent())(input_ids=ids).logits)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("order", [np.arange(64), np.random.default_rng(1).permutation(64)])
def test_gradients_are_those_of_the_formula_that_readers_compute(turned, order):
    random = np.random.default_rng(0)
    q, zeros = (random.integers(0, 16, shape).astype(np.uint8) for shape in ((96, 64), (96, 2)))
    scales = Numbers(15).storable(torch.from_numpy(random.normal(size=(96, 2)).astype(np.float32)))
    grid = Grid(q, scales.numpy(), zeros, (np.arange(64) // 32).astype(np.int32)[order])
    layer = torch.nn.Linear(64, 96, bias=False)
    if turned:
        layer.weight = torch.nn.Parameter(layer.weight.T.contiguous())
    packed = PackedWeight(grid, lambda scales: scales, layer, turned)
    pull = torch.from_numpy(random.normal(size=(96, 64)).astype(np.float32))
    (layer.weight * (pull.T if turned else pull)).sum().backward()
    change = torch.zeros(96, 2, dtype=torch.float64, requires_grad=True)
    steps = torch.from_numpy(q.astype(float) - zeros.astype(float)[:, grid.g_idx])
    (steps * (scales.double() * (1 + change))[:, grid.g_idx] * pull.double()).sum().backward()
    assert torch.allclose(packed.change.grad.double(), change.grad, rtol=1e-4, atol=1e-3)


def test_divergence_is_that_of_the_likeliest_tokens_and_of_all_others_as_one():
    torch.manual_seed(0)
    p = torch.randn(300, 50).double().softmax(-1)
    top = p.topk(7)
    logits = torch.randn(300, 50).double().requires_grad_(True)
    q = logits.softmax(-1)
    likely, rest = q.gather(1, top.indices), 1 - q.gather(1, top.indices).sum(1)
    other = 1 - top.values.sum(1)
    expected = ((top.values * (top.values / likely).log()).sum(1) + other * (other / rest).log()).mean()
    expected.backward()
    given = logits.detach().float().requires_grad_(True)
    found = _Divergence.apply(given, top.indices, top.values.float())
    found.backward()
    assert abs(found.item() - expected.item()) < 1e-5
    assert torch.allclose(given.grad.double(), logits.grad, atol=1e-7)


@pytest.mark.parametrize("shard", [10**9, 60_000])
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bytes(model_of, tmp_path, shard):
    source, options = model_of("llama"), {"max_shard_size": shard}
    quantized(source, tmp_path / "whole", **options)
    expected = contents(tmp_path / "whole")
    for parts in range(1, 6):  # what lies outside of blocks, three blocks, the trained scales
        folder = tmp_path / f"killed-{parts}"
        folder.mkdir()
        with pytest.raises(Killed):
            quantized(source, folder, output=Mortal(folder, parts), **options)
        again = Resumable(folder)
        quantized(source, folder, output=again, **options)
        again.close()
        assert contents(folder) == expected


class Rewriting(Resumable):
    """A folder whose run is killed when scales are written over those of a finished file."""

    def finish(self, file, tensor_bytes):
        if file in self.hashes:
            raise Killed
        super().finish(file, tensor_bytes)


@pytest.mark.parametrize("shard", [10**9, 60_000])
def test_scales_that_were_half_written_are_written_again(model_of, tmp_path, shard):
    source, options, folder = model_of("llama"), {"max_shard_size": shard}, tmp_path / "killed"
    quantized(source, tmp_path / "whole", **options)
    folder.mkdir()
    with pytest.raises(Killed):
        quantized(source, folder, output=Rewriting(folder), **options)
    again = Resumable(folder)
    quantized(source, folder, output=again, **options)
    again.close()
    assert contents(folder) == contents(tmp_path / "whole")


def test_what_is_refined_already_is_not_computed_again(model_of, tmp_path):
    source, folder, heard = model_of("llama"), tmp_path / "q", []
    folder.mkdir()
    quantized(source, folder, output=Resumable(folder))
    quantized(source, folder, output=Resumable(folder), report=Report(heard.append))
    assert "refining" not in str(heard)
    assert "quantizing" not in str(heard)


def test_other_layouts_of_a_calibration_hold_the_scales_that_were_trained(model_of, tmp_path):
    source = model_of("llama")
    before = quantized(source, tmp_path / "first")
    after = before.model_copy(update={"layout": "compressed-tensors"})
    (tmp_path / "again").mkdir()
    with Checkpoint.of(source) as weights:
        repack(weights, Output(tmp_path / "again"), after, (tmp_path / "first", before), silent())
    quantized(source, tmp_path / "alone", layout="compressed-tensors")
    assert contents(tmp_path / "again") == contents(tmp_path / "alone")


def test_windows_are_held_back_evenly_and_an_eighth_of_them_at_most():
    windows = Windows("text", np.arange(24)[:, None])
    assert windows.holding_back(4).held.ravel().tolist() == [4, 12, 20]
    assert windows.holding_back(1).held.ravel().tolist() == [12]
    assert len(windows.holding_back(1).ids) == 23
    assert not Windows("text", np.arange(7)[:, None]).holding_back(4).held.size
