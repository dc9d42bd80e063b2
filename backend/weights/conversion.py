"""Conversion: pickled weights become safetensors with the same tensors, one file at a time.

What that gives is known before, to the byte.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.progress import Report
from backend.strict_json import quoted
from backend.weights.output import Output
from backend.weights.pickled import Pickled
from backend.weights.tensor import DTYPES, Tensor
from backend.weights.writer import INDEX, Shard, Slot, Writer, index

PIECE = 1 << 24  # bytes that are written at a time

_HEADS = ("lm_head.weight", "embed_out.weight")


class Conversion(NamedTuple):
    """What pickled weights become."""

    shards: dict[str, Shard]  # of each safetensors file, by the name of the file that it is made from
    tensors: tuple[Tensor, ...]
    config: bytes  # what config.json is then

    @property
    def listing(self) -> bytes | None:
        """The content of the index; None where there is one file alone."""
        return index([*self.shards.values()], sum(tensor.elements for tensor in self.tensors))

    @property
    def files(self) -> dict[str, int]:
        """The bytes of every file that is written."""
        texts = {"config.json": self.config} | ({INDEX: self.listing} if self.listing else {})
        return {shard.file: shard.size for shard in self.shards.values()} | {n: len(t) for n, t in texts.items()}


def conversion(files: Mapping[str, Pickled], config: Mapping[str, Any]) -> Conversion:
    """Plan what pickled weights become; of an output head that is the input embeddings itself, the config says so.

    Args:
        files: What each of them holds.
        config: The model's.
    """
    untied = config.get("tie_word_embeddings") is False
    tied = set() if untied else {name for file in files.values() for pair in file.aliases.items()
                                 for name in pair if name.endswith(_HEADS)}  # fmt: skip
    kept = {name: [t for t in file.tensors if t.name not in tied] for name, file in files.items()}
    kept = {name: tensors for name, tensors in kept.items() if tensors}
    shards = {name: Shard(_named(name, len(kept)), [Slot(t.name, t.dtype, t.shape) for t in tensors])
               for name, tensors in kept.items()}  # fmt: skip
    said = {**config, "tie_word_embeddings": True} if tied else dict(config)
    text = (json.dumps(said, indent=2) + "\n").encode()
    return Conversion(shards, tuple(tensor for tensors in kept.values() for tensor in tensors), text)


def _named(file: str, files: int) -> str:
    return (
        "model.safetensors"
        if files == 1
        else file.removesuffix(".bin").replace("pytorch_model", "model") + ".safetensors"
    )


def convert(source: Path, files: Mapping[str, Pickled], planned: Conversion, output: Output, report: Report) -> None:
    """Write what pickled weights become, tensor by tensor; files that are there already are left.

    Args:
        source: The folder of the pickled files.
        files: What each of them holds, read before without unpickling.
        planned: From conversion().
        output: Where the safetensors go.
        report: Receives the bytes.

    Raises:
        SpecError: PyTorch does not find plain tensors of these types and shapes.
    """
    total = sum(tensor.bytes for tensor in planned.tensors)
    known = {tensor.name: tensor for tensor in planned.tensors}
    done = 0
    output.plan(_description(source, planned))
    for file, shard in planned.shards.items():
        report.log(f"Converting {file} to {shard.file}.")
        there = output.has(shard.file)
        found = {} if there else _load(source / file, files[file].mapped)
        writer = None if there else Writer(output, shard)
        for name in shard.names:
            if writer:
                _write(writer, known[name], found.pop(name, None), file)
            done += known[name].bytes
            report.progress("converting", done, total, "bytes")
        if writer:
            writer.close()
        del found  # one file at a time is open
    output.settle()
    if content := planned.listing:
        (output.folder / INDEX).write_bytes(content)
    (output.folder / "config.json").write_bytes(planned.config)


def _description(source: Path, planned: Conversion) -> str:
    files = [(name, (source / name).stat().st_size, (source / name).stat().st_mtime_ns) for name in planned.shards]
    return json.dumps([str(source), files, planned.files])


def _load(path: Path, mapped: bool) -> dict[str, Any]:
    """Read a file's tensors as PyTorch does where nothing but tensors is allowed."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as e:
        raise SpecError(f"{quoted(path.name)} cannot be read as plain tensors: choose a model with safetensors.") from e
    return dict(found)


def _write(writer: Writer, known: Tensor, found: Any, file: str) -> None:
    import torch

    named = f"torch.{DTYPES[known.dtype]}"
    if not isinstance(found, torch.Tensor) or str(found.dtype) != named or tuple(found.shape) != known.shape:
        raise SpecError(
            f"{quoted(file)} holds {quoted(known.name)} in another way than it says: choose a model with safetensors."
        )
    raw = found.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    for first in range(0, len(raw), PIECE):
        writer.write(known.name, raw[first : first + PIECE], first)
