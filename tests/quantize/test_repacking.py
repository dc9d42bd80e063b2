"""Several layouts of one calibration: what is packed again holds the bytes that the layout has alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.repacking import repack
from backend.quantize.calibrated.windows import Windows
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output, Resumable
from tests.support.killed_runs import Killed, Mortal
from tests.support.saved_models import THREE_BLOCKS, save

PAIRS = [
    ("gptq", {}, "gptq", "compressed-tensors"),
    ("gptq", {}, "compressed-tensors", "awq"),
    ("gptq", {"bits": 3}, "compressed-tensors", "gptq"),
    ("gptq", {"sym": False, "group_size": -1}, "awq", "compressed-tensors"),
    ("awq", {}, "compressed-tensors", "awq"),
]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    from transformers import AutoConfig

    made = {}

    def make(kind, dtype=torch.bfloat16) -> Path:
        if (kind, dtype) not in made:
            config = AutoConfig.for_model(kind, **THREE_BLOCKS[kind])
            made[kind, dtype] = save(config, tmp_path_factory.mktemp("models") / kind, dtype)
        return made[kind, dtype]

    return make


def calibrated(source, folder, method, **options):
    folder.mkdir()
    chosen = METHODS[method].Options(**{"group_size": 32, **options})
    read = Windows("random", np.random.default_rng(0).integers(0, 128, (4, 32)))
    with Checkpoint.of(source) as weights:
        METHODS[method].quantize(weights, Output(folder), chosen, read, silent())
    return chosen


def repacked(source, folder, found, output=None, **changes):
    """Pack the grids in the folder that was found in another layout, as a stage does."""
    place, before = found
    folder.mkdir(exist_ok=True)
    options = before.model_copy(update=changes)
    assert options.shares(before)
    with Checkpoint.of(source) as weights:
        repack(weights, output or Output(folder), options, (place, before), silent())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", THREE_BLOCKS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_layout_that_is_packed_again_has_the_bytes_that_it_has_alone(model_of, tmp_path, kind, pair):
    method, options, first, second = pair
    source = model_of(kind)
    before = calibrated(source, tmp_path / "first", method, layout=first, **options)
    calibrated(source, tmp_path / "alone", method, layout=second, **options)
    repacked(source, tmp_path / "again", (tmp_path / "first", before), layout=second)
    assert contents(tmp_path / "again") == contents(tmp_path / "alone")
    assert contents(tmp_path / "again")["config.json"] != contents(tmp_path / "first")["config.json"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shards_of_other_sizes_and_other_types_of_numbers_are_packed_again(model_of, tmp_path, dtype):
    source = model_of("llama", dtype)
    before = calibrated(source, tmp_path / "first", "gptq", max_shard_size=60_000)
    changes = {"layout": "compressed-tensors", "max_shard_size": 50_000}
    calibrated(source, tmp_path / "alone", "gptq", **changes)
    repacked(source, tmp_path / "again", (tmp_path / "first", before), **changes)
    assert contents(tmp_path / "again") == contents(tmp_path / "alone")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1


def test_grids_without_symmetry_serve_the_layouts_whose_readers_take_their_zeros():
    def options(layout, **changes):
        return METHODS["gptq"].Options(**{"layout": layout, "sym": False, **changes})

    assert options("awq").shares(options("gptq"))
    assert options("compressed-tensors").shares(options("awq"))
    assert not options("gptq").shares(options("awq"))
    assert options("gptq", sym=True).shares(options("awq", sym=True))


@pytest.mark.parametrize("changes", [{"bits": 8}, {"group_size": 64}, {"sym": False}, {"num_calibration_samples": 9}])
def test_grids_are_not_shared_where_anything_else_differs(changes):
    before, after = METHODS["gptq"].Options(), METHODS["gptq"].Options(layout="compressed-tensors", **changes)
    assert not after.shares(before)
    assert not after.shares(METHODS["nf4"].Options())


def test_what_asymmetric_gptq_finds_is_what_awq_holds_after_it(model_of, tmp_path):
    """Alone awq has zeros of 0, which gptq's readers do not take: its bytes are then others, its weights are these."""
    from backend.quantize.packed import load_unpacked

    source = model_of("llama")
    before = calibrated(source, tmp_path / "first", "gptq", sym=False)
    repacked(source, tmp_path / "again", (tmp_path / "first", before), layout="awq")
    first, again = (load_unpacked(tmp_path / name, silent()).state_dict() for name in ("first", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("shard", [10**9, 60_000])
def test_packing_that_was_killed_after_any_block_goes_on_to_the_same_bytes(model_of, tmp_path, shard):
    source = model_of("llama")
    found = tmp_path / "first", calibrated(source, tmp_path / "first", "gptq", max_shard_size=shard)
    repacked(source, tmp_path / "whole", found, layout="awq")
    for parts in range(1, 5):  # what lies outside of blocks, then three blocks
        folder = tmp_path / f"killed-{parts}"
        folder.mkdir()
        with pytest.raises(Killed):
            repacked(source, folder, found, Mortal(folder, parts), layout="awq")
        again = Resumable(folder)
        repacked(source, folder, found, again, layout="awq")
        assert len(again.marks) == 4
        again.close()
        assert contents(folder) == contents(tmp_path / "whole")


def test_grids_that_were_found_anew_are_packed_anew(model_of, tmp_path):
    source = model_of("llama")
    found = tmp_path / "first", calibrated(source, tmp_path / "first", "gptq")
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(Killed):
        repacked(source, folder, found, Mortal(folder, 3), layout="awq")
    calibrated(source, tmp_path / "anew", "gptq", damp_percent=0.5)
    again = Resumable(folder)
    repacked(source, folder, (tmp_path / "anew", found[1]), again, layout="awq")
    again.close()
    repacked(source, tmp_path / "whole", (tmp_path / "anew", found[1]), layout="awq")
    assert contents(folder) == contents(tmp_path / "whole")
