"""Make tests/weights/compressed_tensors.safetensors: matrices as the package compressed-tensors packs and unpacks them.

    .venv-cards/bin/python tests/support/compressed_cases.py

Each case holds what a checkpoint would, under `<case>/weight_packed` and so on, and in `<case>/decoded` what the
package makes of it; the metadata hold its config group.
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file

PACK, INT, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
GROUPS = {"strategy": "group", "group_size": 16}
FOUR = {"num_bits": 4, "type": "float", "symmetric": True}


def integers():
    """Return cases of each number of bits: the last word of a row is full in some and has room in others."""
    for bits in range(2, 9):
        for symmetric in (True, False):
            kind = {"num_bits": bits, "symmetric": symmetric}
            name = f"w{bits} {'symmetric' if symmetric else 'with zeros'}"
            yield f"{name} in groups", (PACK, (12, 48), kind | GROUPS)
            yield f"{name} of rows", (PACK, (12, 32), kind | {"strategy": "channel"})
            yield f"{name} of odd rows", (PACK, (5, 45), kind | {"strategy": "channel"})


CASES = {
    "w4 groups": (PACK, (24, 96), {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}),
    "w4 groups with zeros": (
        PACK, (20, 128), {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "w4 rows": (PACK, (20, 40), {"num_bits": 4, "strategy": "channel", "symmetric": True}),
    "w4 rows with zeros": (PACK, (12, 48), {"num_bits": 4, "strategy": "channel", "symmetric": False}),
    "w8 groups": (PACK, (10, 64), {"num_bits": 8, "strategy": "group", "group_size": 16, "symmetric": True}),
    "w8 rows with zeros": (PACK, (11, 36), {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "w2 groups": (PACK, (8, 64), {"num_bits": 2, "strategy": "group", "group_size": 32, "symmetric": False}),
    "int8 rows": (INT, (9, 21), {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "int8 rows with zeros": (INT, (9, 21), {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "int8 groups": (INT, (9, 24), {"num_bits": 8, "strategy": "group", "group_size": 8, "symmetric": True}),
    "fp8 rows": (FLOAT, (13, 30), {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}),
    "fp8 whole": (FLOAT, (7, 30), {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}),
    "fp8 blocks": (
        FLOAT, (24, 40), {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 16]},
    ),
    "mxfp4": (
        "mxfp4-pack-quantized", (17, 96), FOUR | GROUPS | {"group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "nvfp4": (
        "nvfp4-pack-quantized", (17, 80),
        FOUR | GROUPS | {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"},
    ),
    **dict(integers()),
}  # fmt: skip

ROUNDED = ("w4 groups with zeros", "w3 with zeros in groups", "fp8 rows")
"""Cases whose scales are float16 too: what they make is rounded twice."""


def extremes(weight, args):
    """Return the smallest and the largest number of each block, in the shape of the scales."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return weight.min()[None], weight.max()[None]
    size = {"channel": (1, columns), "block": args.block_structure}.get(args.strategy, (1, args.group_size))
    down, across = -(-rows // size[0]), -(-columns // size[1])
    cells = [[weight[i * size[0] : (i + 1) * size[0], j * size[1] : (j + 1) * size[1]] for j in range(across)]
             for i in range(down)]  # fmt: skip
    return (torch.tensor([[pick(cell) for cell in line] for line in cells]) for pick in (torch.min, torch.max))


def case(form, shape, settings, dtype):
    """Return what a checkpoint holds of a matrix, what the package decodes it to, and its group."""
    args = QuantizationArgs(**settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    weight = torch.randn(shape)
    low, high = extremes(weight, args)
    over = generate_gparam(weight.min(), weight.max()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, high, args, over)
    state = {"weight": weight, "weight_scale": scale.to(dtype), "weight_zero_point": zero}
    if over is not None:
        state["weight_global_scale"] = over
    package = BaseCompressor.get_value_from_registry(form)
    stored = package.compress(state, scheme)
    decoded = package.decompress(stored, scheme)["weight"].to(torch.bfloat16)
    group = {"targets": ["Linear"], "format": form, "weights": settings}
    return {**stored, "decoded": decoded}, group


def main(path):
    """Write the file."""
    torch.manual_seed(0)
    tensors, groups = {}, {}
    for name, (form, shape, settings) in CASES.items():
        for kind in (torch.bfloat16, torch.float16) if name in ROUNDED else (torch.bfloat16,):
            full = f"{name}, {str(kind).removeprefix('torch.')}"
            found, groups[full] = case(form, shape, settings, kind)
            tensors |= {f"{full}/{part}": value.contiguous() for part, value in found.items()}
    save_file(tensors, path, {"groups": json.dumps(groups)})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/weights/compressed_tensors.safetensors"))
