"""Tensors: what is looked at in the weights themselves before they leave, a few MB at a time."""

import re
from pathlib import Path

import numpy as np

from backend.errors import SpecError
from backend.progress import Report
from backend.publish.files import WEIGHTS, check_words
from backend.publish.readback import Files
from backend.strict_json import quoted
from backend.weights.floats import Bytes, is_finite
from backend.weights.header import Header, read_headers
from backend.weights.tensor import Tensor

CHUNK = 4_000_000  # bytes; a multiple of every type's width

_FLOAT8 = {"F8_E5M2": 0x7C, "F8_E4M3": 0x7F, "F8_E8M0": 0xFF}
"""The bits that are all set in an infinity or a NaN."""

_OPTIMIZER = re.compile(r"(^|\.)(exp_avg(_sq)?|max_exp_avg_sq|momentum_buffer|optimizer(_state)?)(\.|$)")


def check_weights(files: Files, token: str | None, report: Report) -> None:
    """Refuse weights with a number that is none, with a state of an optimizer, or with a token or a path in a header.

    Args:
        files: What is to leave; weights that were sent ahead, which are not here any more, are left out.
        token: What publishes.
        report: Receives the bytes looked at.

    Raises:
        SpecError: The file, the tensor, what to do.
    """
    paths = [f.source for name, f in files.items() if name.endswith(WEIGHTS) and isinstance(f.source, Path)]
    headers = read_headers(paths)
    total, done = sum(path.stat().st_size for path in paths), 0
    for path, header in headers.items():
        _check_header(path.name, header, token)
        with path.open("rb", buffering=0) as file:
            for tensor in header.tensors:
                start, end = header.offsets[tensor.name]
                file.seek(start)
                while start < end:
                    raw = np.fromfile(file, np.uint8, min(CHUNK, end - start))
                    if not (raw.size and _is_finite(raw, tensor)):
                        raise SpecError(
                            f"{quoted(tensor.name)} in '{path.name}' holds a number that is not finite (NaN or"
                            " infinity): the model is damaged, make it again."
                        )
                    start += raw.size
                    report.progress("checking weights", done + start, total, "bytes")
        done += path.stat().st_size


def _check_header(name: str, header: Header, token: str | None) -> None:
    check_words(name, "\n".join([*header.metadata, *header.metadata.values()]), token)
    for tensor in header.tensors:
        if _OPTIMIZER.search(tensor.name):
            raise SpecError(
                f"'{name}' holds a state of an optimizer, {quoted(tensor.name)}: publish the weights alone."
            )


def _is_finite(raw: Bytes, tensor: Tensor) -> bool:
    if bits := _FLOAT8.get(tensor.dtype):
        return not bool(((raw & bits) == bits).any())
    return is_finite(raw, tensor.dtype)
