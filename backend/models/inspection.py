"""Inspect: what a model is, from its config and safetensors headers; no weights, no torch."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from backend.errors import SpecError
from backend.hub.admission import INDEX, Admitted, admit
from backend.hub.files import Entry, Files, HubFiles, LocalFiles
from backend.hub.front_matter import languages_of, license_of, read_card
from backend.hub.names import DEMO, is_local
from backend.models.demo import demo_facts
from backend.models.facts import ModelFacts, Tensor
from backend.strict_json import quoted
from backend.weights.header import PROBE, Header, header_from

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "U8": "uint8", "I8": "int8"}
_DTYPES |= {"I32": "int32", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")
_BYTES_A_TENSOR = 160  # what a tensor takes in a header, generously


def inspect(model: str, revision: str | None = None, token: str | None = None) -> ModelFacts:
    """Look at a model without downloading or loading it.

    Args:
        model: `demo`, a repo id, or the absolute path of a local folder, as parse_model() gives it.
        revision: A branch, tag or commit of a Hub model; None is its main branch.
        token: Of who asks.

    Raises:
        SpecError: The model is none that the studio can work on; the file, the field, what to do.
        HubError: The Hub refused or could not be reached.
    """

    if model == DEMO:
        return demo_facts()
    if is_local(model):
        return _local(Path(model))
    from backend.hub import client

    info = client.model_info(model, revision, token)
    commit = client.commit_of(info, model)
    files = HubFiles(model, commit, token)
    client.check_access(model, token)
    admitted = admit(files)
    return _facts(model, files, admitted, tuple(info.tags or ())).model_copy(
        update={
            "commit": commit,
            "base_model": model,
            "gated": bool(info.gated),
            "private": bool(info.private),
            "downloads": info.downloads,
        }
    )


def _local(folder: Path) -> ModelFacts:
    files = LocalFiles(folder)
    admitted = admit(files, whole=True)
    return _facts(str(folder), files, admitted, ()).model_copy(update={"download": 0})


def read_tensors(files: Files, admitted: Admitted) -> tuple[Tensor, ...]:
    """Give the tensors of all weight files, checked as read_headers() does."""
    return tuple(tensor for header in read_headers(files, admitted).values() for tensor in header.tensors)


def read_headers(files: Files, admitted: Admitted) -> dict[str, Header]:
    """Read and check the headers of all weight files, by name, and that they hold what the index says.

    Raises:
        SpecError: The file and tensor at fault.
    """
    listed = Counter((admitted.weight_map or {}).values())

    def read(entry: Entry) -> Header:
        probe = 1024 + listed[entry.name] * _BYTES_A_TENSOR if listed else PROBE
        return header_from(partial(files.read, entry.name), entry.size, entry.name, probe)

    with ThreadPoolExecutor(8) as pool:  # a 70B has 30 shards, each a round trip
        shards = dict(zip((e.name for e in admitted.weights), pool.map(read, admitted.weights), strict=True))
    where: dict[str, str] = {}
    for shard, header in shards.items():
        for tensor in header.tensors:
            if where.setdefault(tensor.name, shard) != shard:
                raise SpecError(
                    f"Tensor {quoted(tensor.name)} is in both {quoted(where[tensor.name])} and {quoted(shard)}: two"
                    " models are mixed here. Choose a complete model."
                )
    for name, shard in (admitted.weight_map or {}).items():
        if where.get(name) != shard:
            raise SpecError(
                f"{INDEX!r} lists tensor {quoted(name)} in {quoted(shard)}, which does not hold it: choose a complete"
                " model."
            )
    return shards


def _facts(model: str, files: Files, admitted: Admitted, tags: tuple[str, ...]) -> ModelFacts:
    tensors, config, card = read_tensors(files, admitted), admitted.config, read_card(files)
    license = license_of(card, tags)
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += _parameters(tensor, config.quantization)
    has_head = any(tensor.name.endswith(_OUTPUT_HEADS) for tensor in tensors)
    most = counts.most_common(1)[0][0] if counts else "BF16"
    return ModelFacts(
        model=model,
        architecture=config.architecture,
        model_type=config.model_type,
        parameters=counts.total(),
        size=sum(entry.size for entry in admitted.weights),
        largest_file=max(entry.size for entry in admitted.weights),
        download=sum(entry.size for entry in admitted.files),
        dtype=_DTYPES.get(most, most.lower()),
        layers=config.layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        tied=not has_head if config.tied is None else config.tied,
        chat_template=admitted.chat_template,
        quant_method=config.quantization["quant_method"] if config.quantization else None,
        license=license.id,
        license_name=license.name,
        license_link=license.link,
        languages=languages_of(card),
        tensors=tensors,
        config=config.data,
        files={entry.name: entry.size for entry in admitted.files},
        card=card,
    )


def _parameters(tensor: Tensor, quantization: dict[str, Any] | None) -> int:
    """Count the parameters that a tensor stands for: packed weights hold several a number, scales hold none."""
    numbers, end = math.prod(tensor.shape), tensor.name.rpartition(".")[2]
    if quantization is None:
        return numbers
    if end == "qweight":  # GPTQ and AWQ pack into int32
        bits = quantization.get("bits")
        return numbers * 32 // bits if type(bits) is int and 0 < bits <= 32 else numbers
    if quantization["quant_method"] == "bitsandbytes" and tensor.dtype == "U8" and end == "weight":
        return numbers * 2
    return numbers if end in ("weight", "bias") else 0
