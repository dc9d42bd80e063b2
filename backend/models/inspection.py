"""Inspect: what a model is, from its config and safetensors headers; no weights, no torch."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from backend.errors import SpecError
from backend.hub.files import Entry, Files, HubFiles, LocalFiles
from backend.hub.front_matter import languages_of, license_of, read_card
from backend.hub.ids import DEMO, is_local
from backend.models.admission import PICKLE_INDEX, Admitted, admit
from backend.models.completeness import check_complete
from backend.models.config import Config, check_config
from backend.models.demo import demo_facts
from backend.models.facts import ModelFacts
from backend.strict_json import quoted
from backend.weights.anatomy import output_head
from backend.weights.conversion import conversion
from backend.weights.decoded import Dense, dense
from backend.weights.header import PROBE, Allowance, Header, header_from
from backend.weights.pickled import Pickled, read_pickled
from backend.weights.tensor import DTYPES, Tensor
from backend.weights.writer import INDEX

_BYTES_A_TENSOR = 160  # what a tensor takes in a header, generously


def inspect(model: str, revision: str | None = None, token: str | None = None) -> ModelFacts:
    """Look at a model without downloading or loading it.

    Args:
        model: `demo`, a repo id, or the absolute path of a local folder, as parse_model() gives it.
        revision: A branch, tag or commit of a Hub model; None is its main branch.
        token: The caller's Hub token.

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
    """Return the tensors of all weight files, checked as read_headers() does."""
    read = read_pickles if admitted.pickled else read_headers
    return tuple(tensor for file in read(files, admitted).values() for tensor in file.tensors)


def read_headers(files: Files, admitted: Admitted) -> dict[str, Header]:
    """Read and check the headers of all weight files, by name, and that they hold what index and config say.

    Raises:
        SpecError: The file and tensor at fault.
    """
    listed, allowance = Counter((admitted.weight_map or {}).values()), Allowance()

    def read(entry: Entry) -> Header:
        probe = 1024 + listed[entry.name] * _BYTES_A_TENSOR if listed else PROBE
        return header_from(partial(files.read, entry.name), entry.size, entry.name, probe, allowance)

    shards = _each(admitted, read)
    _check_places({shard: header.tensors for shard, header in shards.items()}, admitted.weight_map or {}, INDEX)
    stored = [tensor for header in shards.values() for tensor in header.tensors]
    check_complete(*_as_seen(admitted.config, dense(stored, admitted.config.data)))
    return shards


def _as_seen(config: Config, found: Dense) -> tuple[Config, tuple[Tensor, ...]]:
    """Return config and tensors as whoever works on the model sees them."""
    quantization = None if found.how else config.quantization
    return config._replace(quantization=quantization, data=found.config), found.tensors


def read_pickles(files: Files, admitted: Admitted) -> dict[str, Pickled]:
    """Read what pickled weight files hold, as read_headers() does; nothing is unpickled."""
    found = _each(admitted, lambda entry: read_pickled(partial(files.read, entry.name), entry.size, entry.name))
    _check_places({file: held.tensors for file, held in found.items()}, admitted.weight_map or {}, PICKLE_INDEX)
    return found


T = TypeVar("T")


def _each(admitted: Admitted, read: Callable[[Entry], T]) -> dict[str, T]:
    with ThreadPoolExecutor(8) as pool:  # a 70B has 30 shards, each a round trip
        return dict(zip((e.name for e in admitted.weights), pool.map(read, admitted.weights), strict=True))


def _check_places(held: Mapping[str, Iterable[Tensor]], listed: Mapping[str, str], listing: str) -> None:
    """Refuse a tensor in two files, and an index that names another file than the one that holds a tensor."""
    where: dict[str, str] = {}
    for shard, tensors in held.items():
        for tensor in tensors:
            if where.setdefault(tensor.name, shard) != shard:
                raise SpecError(
                    f"Tensor {quoted(tensor.name)} is in both {quoted(where[tensor.name])} and {quoted(shard)}: two"
                    " models are mixed here. Choose a complete model."
                )
    for name, shard in listed.items():
        if where.get(name) != shard:
            raise SpecError(
                f"{listing!r} lists tensor {quoted(name)} in {quoted(shard)}, which does not hold it: choose a complete"
                " model."
            )


def _facts(model: str, files: Files, admitted: Admitted, tags: tuple[str, ...]) -> ModelFacts:
    config, card = admitted.config, read_card(files)
    there = {entry.name: entry.size for entry in admitted.files} | admitted.kept
    pickled = read_pickles(files, admitted) if admitted.pickled else {}
    planned = conversion(pickled, config.data) if pickled else None
    stored = planned.tensors if planned else read_tensors(files, admitted)
    if planned:
        config = check_config(json.loads(planned.config))
        check_complete(config, stored)
        there = {entry.name: there[entry.name] for entry in admitted.beside} | planned.files
    found = dense(stored, config.data)
    config, tensors = _as_seen(config, found)
    license = license_of(card, tags)
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += _parameters(tensor, config.quantization)
    most = counts.most_common(1)[0][0] if counts else "BF16"
    return ModelFacts(
        model=model,
        architecture=config.architecture,
        model_type=config.model_type,
        parameters=counts.total(),
        size=sum(there[shard.file] for shard in planned.shards.values()) if planned else _bytes(admitted.weights),
        largest_file=max(entry.size for entry in admitted.weights),
        download=_bytes(admitted.files),
        dtype=DTYPES.get(most, most.lower()),
        layers=config.layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        tied=config.tied and output_head(tensors) is None,
        chat_template=admitted.chat_template,
        quant_method=config.quantization["quant_method"] if config.quantization else None,
        encoding=found.how,
        decoded=sum(one.tensor.elements for one in found.encoded),
        decoding_memory=found.memory,
        license=license.id,
        license_name=license.name,
        license_link=license.link,
        languages=languages_of(card),
        tensors=tensors,
        config=config.data,
        files=there,
        pickled=_bytes(admitted.weights) if planned else 0,
        pickled_memory=max(
            (_in_memory(pickled[e.name], e.size) for e in admitted.weights if e.name in pickled), default=0
        ),
        card=card,
    )


def _in_memory(held: Pickled, size: int) -> int:
    """Return the bytes that are in memory while a pickled file is converted: a tensor, or all of an old file."""
    return max((tensor.bytes for tensor in held.tensors), default=0) if held.mapped else size


def _bytes(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries)


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
