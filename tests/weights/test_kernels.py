"""The arithmetic of the formats: in NumPy alone, compiled, and as torch and bitsandbytes do it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from backend.processes.child import ROOT
from backend.weights import compiled, kernels
from backend.weights.floats import INFINITY, INTEGERS, from_float32, is_finite, to_float32

EVERYTHING = """
import hashlib, itertools, sys
if sys.argv[1] == "numpy":
    sys.modules["llvmlite"] = sys.modules["numba"] = None
import numpy as np
from backend.weights import compiled, kernels, rounding
from backend.weights.codes import SCALED
from backend.weights.floats import from_float32, is_finite
assert (compiled.compiled("narrow") is None) == (sys.argv[1] == "numpy")
rng = np.random.default_rng(0)
found = hashlib.sha256()
values = (rng.standard_normal(64 * 300 + 17) * 0.02).astype(np.float32)
values[640:1280] = 0
values[64:128] *= np.float32(1e-38)
for dtype in ("BF16", "F16", "F32"):
    raw = from_float32(values, dtype)
    for code in ("nf4", "fp4"):
        for part in kernels.quantize_4bit(raw, dtype, code):
            found.update(part.tobytes())
    found.update(bytes([is_finite(raw, dtype)]))
    for code, (columns, width) in itertools.product(SCALED, ((256, 32), (192, 192), (200, 128))):
        if SCALED[code].bits == 4 and columns % width:
            continue
        rows = rounding.Rows(raw[: 64 * columns * len(raw) // len(values)], dtype, columns, width)
        tops = rounding.magnitudes(rows)
        tried = (448, 300, 6, 3.3, 128) if columns % width == 0 else (100,)
        scales = rounding.stored(np.divide(tops[..., None], tried, dtype=np.float32), dtype)
        for part in (tops, *rounding.encode(rows, code, scales)):
            found.update(part.tobytes())
for n in (1, 7, 63, 257, 40_000):
    for threads in (1, 2, 3):
        for part in kernels.quantize_absmax(np.abs(rng.standard_normal(n)).astype(np.float32), threads):
            found.update(part.tobytes())
for part in kernels.quantize_absmax(np.zeros(300, np.float32), 1):
    found.update(part.tobytes())
rows = values[:19_000].reshape(19, 1000).astype(np.float16)
rows[3] = 0
for part in kernels.quantize_rows(rows):
    found.update(part.tobytes())
found.update(from_float32(rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32), "BF16").tobytes())
print(found.hexdigest())
"""


def everything(how):
    """Compute everything once in a fresh process."""
    command = [sys.executable, "-c", EVERYTHING, how]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_numpy_alone_gives_the_same_bytes():
    found = everything("numpy")
    assert len(found.strip()) == 64
    assert found == everything("compiled")


def test_every_loop_runs_without_the_compiler():
    from backend.weights.loops import LOOPS

    for name in LOOPS:
        assert compiled.compiled(name) is not None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 7, 63, 1000, 32767, 32768, 100_003])
def test_scales_are_added_up_in_torchs_order(n, threads):
    values = torch.rand(n, generator=torch.Generator().manual_seed(n))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert kernels.sum_like_torch(values.numpy(), threads) == values.sum().numpy()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_casts_round_as_torch_does(dtype, kind):
    values = torch.randn(10_001, generator=torch.Generator().manual_seed(0)) * 3e4
    found = from_float32(values.numpy(), dtype)
    assert (found == values.to(kind).view(torch.uint8).numpy().reshape(-1)).all()
    assert (to_float32(found, dtype) == values.to(kind).float().numpy()).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_one_number_that_is_not_finite_is_found(dtype):
    bits = np.zeros(1000, INTEGERS[dtype])
    assert is_finite(bits.view(np.uint8), dtype)
    bits[777] = INFINITY[dtype] - 1
    assert is_finite(bits.view(np.uint8), dtype)
    for fault in (INFINITY[dtype], INFINITY[dtype] + 1):
        bits[777] = fault
        assert not is_finite(bits.view(np.uint8), dtype)
