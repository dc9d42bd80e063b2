"""Admission: which files of a model are taken, and which models are refused before any library may touch them.

Reliability §4.5: only our own JSON reader sees a repo until it is admitted; nothing here runs, unpickles or renders.
"""

import re
from typing import Any, NamedTuple

from backend.artifacts.artifact import MANIFEST, is_of_a_folder
from backend.errors import AdapterError, SpecError
from backend.hub.files import Entry, Files
from backend.hub.ids import parse_repo_id
from backend.model_folder import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    LIMITS,
    MAX_JSON,
    MAX_TEXT,
    TEMPLATE,
    TOKENIZER_CONFIG,
    goes_along,
    kind_of,
)
from backend.models.config import Config, as_kept, check_config, refuse_code, without_code
from backend.models.native import is_native_tokenizer
from backend.strict_json import parse_object, quoted
from backend.weights.writer import INDEX

MAX_INDEX = 20_000_000  # bytes; mixtures of hundreds of experts have 9 MB
MAX_SHARDS = 1000  # each is asked for its header; the largest models have some hundred

SINGLE = "model.safetensors"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors")
_PICKLED_SHARD = re.compile(r"pytorch_model[A-Za-z0-9_.-]*\.bin")
_OTHERS = {ADAPTER_CONFIG: MAX_JSON}
_README = re.compile(r"readme[a-z0-9_-]*(\.(md|txt))?", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib")
_FOREIGN = {".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX"}


class Admitted(NamedTuple):
    """A model that may be looked at, downloaded and, offline and without repo code, loaded."""

    files: tuple[Entry, ...]  # what is taken, weights included
    weights: tuple[Entry, ...]
    config: Config
    weight_map: dict[str, str] | None  # tensor → shard, where there is an index
    chat_template: bool
    kept: dict[str, int]  # bytes that settings files have here, without what names code
    pickled: bool  # whether the weights are pytorch_model.bin, which is converted before anything else reads it

    @property
    def beside(self) -> tuple[Entry, ...]:
        """The files that are no weights."""
        return tuple(e for e in self.files if e not in self.weights and e.name not in (INDEX, PICKLE_INDEX))


def admit(files: Files, whole: bool = False) -> Admitted:
    """Admit a model or say in one sentence why not.

    Args:
        files: Where its files lie.
        whole: Whether tokenizer files are read too, which can have many megabytes.

    Raises:
        SpecError: The file, the field, and what to do.
        HubError: The Hub could not be asked.
    """
    entries = {entry.name: entry for entry in files.entries()}
    _check_names(entries, files)
    kept: dict[str, int] = {}
    config = check_config(_settings(files, entries["config.json"], kept))
    pickled = SINGLE not in entries and INDEX not in entries
    single, listing = (PICKLE, PICKLE_INDEX) if pickled else (SINGLE, INDEX)
    weight_map = None if single in entries else _weight_map(files, entries, listing)
    shards = sorted(set(weight_map.values())) if weight_map is not None else [single]
    weights = tuple(entries[name] for name in shards)
    _check_sizes(config, weights)
    taken = tuple(e for e in entries.values() if e.name == CONFIG or is_taken(files, e))
    template = _check_texts(files, taken, whole, kept)
    index = (entries[listing],) if weight_map is not None else ()
    return Admitted((*taken, *index, *weights), weights, config, weight_map, template, kept, pickled)


def admit_adapter(files: Files) -> tuple[Entry, ...]:
    """Return the files that are taken of an adapter's repo, or say in one sentence why none are.

    Raises:
        SpecError: The file, the field, and what to do.
        HubError: The Hub could not be asked.
    """
    entries = {entry.name: entry for entry in files.entries()}
    for name, entry in entries.items():
        if entry.link:
            raise _fault(name, "is a symbolic link", "copy the folder with `cp -rL` and give the copy")
    taken = tuple(e for e in entries.values() if e.name in (ADAPTER_CONFIG, ADAPTER) or is_taken(files, e))
    _check_texts(files, taken, False, {})
    return taken


def is_taken(files: Files, entry: Entry) -> bool:
    """Return whether a file is taken beside weights and config, and goes along unless it is the card."""
    if kind_of(entry.name) == "processor":  # nothing here reads pictures or sound: one that wants code stays behind
        try:
            refuse_code(_json(files, entry), entry.name)
        except SpecError:
            return False
    return goes_along(entry.name, entry.size) or _README.fullmatch(entry.name) is not None


def _check_names(entries: dict[str, Entry], files: Files) -> None:
    for name, entry in entries.items():
        if not name.isprintable() or name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise _fault(name, "is no name for a model's file")
        if entry.link:
            raise _fault(name, "is a symbolic link", "copy the folder with `cp -rL` and give the copy")
    if "adapter_config.json" in entries:
        raise _adapter(files, entries)
    if "config.json" not in entries:
        raise SpecError("'config.json' is missing: choose a model in transformers' format.")
    if not entries.keys() & {SINGLE, INDEX, PICKLE, PICKLE_INDEX}:
        raise _no_weights(list(entries))


def _adapter(files: Files, entries: dict[str, Entry]) -> SpecError:
    if "config.json" in entries:
        return _fault("adapter_config.json", "says that an adapter lies beside the model", "choose one without it")
    named = _json(files, entries["adapter_config.json"]).get("base_model_name_or_path")
    if MANIFEST in entries and is_of_a_folder(_json(files, entries[MANIFEST])):
        what = f"an adapter, tuned on a local folder, {quoted(named)}"
        return AdapterError(f"'adapter_config.json' says that this is {what}: choose that folder.", None)
    try:
        base = parse_repo_id(named) if isinstance(named, str) else None
    except ValueError:  # a path of its author's machine, or worse: not repeated
        base = None
    choose = "choose its base model" + (f", {quoted(base)}" if base else "")
    return AdapterError(f"'adapter_config.json' says that this is an adapter, not a model: {choose}.", base)


def _no_weights(names: list[str]) -> SpecError:
    for name in names:
        if name.lower().endswith(_PICKLES):
            return SpecError(
                f"This model has only pickled weights such as {quoted(name)}, of which pytorch_model.bin alone is"
                " converted here: ask its author for safetensors."
            )
    for name in names:
        if what := next((words for suffix, words in _FOREIGN.items() if name.lower().endswith(suffix)), None):
            return SpecError(f"This model has only {what} weights, {quoted(name)}: choose the one it was made from.")
    return SpecError(f"{SINGLE!r} and {INDEX!r} are missing: choose a model with safetensors weights.")


def _weight_map(files: Files, entries: dict[str, Entry], listing: str) -> dict[str, str]:
    """Read the index; like transformers, a single file is taken before an index."""
    weight_map = _json(files, entries[listing], MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fault(listing, "has no weight_map")
    names = _PICKLED_SHARD if listing == PICKLE_INDEX else _SHARD
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not names.fullmatch(shard) or ".." in shard:
            raise _fault(listing, f"keeps {quoted(tensor)} in {quoted(shard)}, which is no name for a shard")
        if shard not in entries:
            raise _fault(listing, f"lists the shard {quoted(shard)}, which is missing", "choose a complete model")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise _fault(listing, f"lists more than {MAX_SHARDS} shards")
    return weight_map


def _check_sizes(config: Config, weights: tuple[Entry, ...]) -> None:
    """An embedding of 4 bits a number is the smallest there is; a config that claims more would fill the memory."""
    claimed, there = config.vocab_size * config.hidden_size // 2, sum(entry.size for entry in weights)
    pointers = [entry.name for entry in weights if entry.size < 1024]  # their own sentence comes with the header
    if claimed > there and not pointers:
        raise _fault(
            "config.json",
            f"says vocab_size = {config.vocab_size} and hidden_size = {config.hidden_size}, which do not fit into"
            f" weights of {there} bytes",
        )


def _check_texts(files: Files, taken: tuple[Entry, ...], whole: bool, kept: dict[str, int]) -> bool:
    """Check every other JSON file, and say whether there is a chat template."""
    template, there = False, {entry.name.lower() for entry in taken}
    for entry in taken:
        name, kind = entry.name, kind_of(entry.name)
        if name in (CONFIG, ADAPTER):  # each has a reader of its own
            continue
        limit = LIMITS[kind] if kind else _OTHERS.get(name, MAX_TEXT)
        if entry.size > limit:
            raise _fault(name, f"has {entry.size} bytes, of which {limit} are allowed")
        template = template or (name == TEMPLATE and entry.size > 0)
        large = kind == "vocabulary"
        if not name.endswith(".json") or (large and not whole):
            continue
        data = _json(files, entry, limit) if large else _settings(files, entry, kept)
        if not large:
            own = name == TOKENIZER_CONFIG and not _has_tokenizer(data, there)
            refuse_code(data if own else without_code(data, name), name)
        if name in (TOKENIZER_CONFIG, "chat_template.json"):
            template = _check_template(data, name) or template
    return template


def _has_tokenizer(settings: dict[str, Any], there: set[str]) -> bool:
    """Return whether a tokenizer can be read without code of the repo."""
    return "tokenizer.json" in there or is_native_tokenizer(settings.get("tokenizer_class"))


def _check_template(data: dict[str, Any], name: str) -> bool:
    """Check a chat template, which is text, or a list of named texts that transformers saves as files."""
    found = data.get("chat_template")
    if isinstance(found, list):
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict) and _plain(t.get("name"), name)}
    elif found is None:
        found = {}
    elif not isinstance(found, dict):
        found = {"default": found}
    for key, text in found.items():
        _plain(key, name)
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise _fault(name, f"has a chat_template {quoted(key)} that is no text of at most {MAX_TEXT} characters")
    return any(found.values())


def _plain(key: Any, name: str) -> bool:
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", key):
        raise _fault(name, f"names a chat_template {quoted(key)}, which is no plain word")
    return True


def _settings(files: Files, entry: Entry, kept: dict[str, int]) -> dict[str, Any]:
    """Read a settings file, and note the bytes that it has without what names code."""
    raw = _read(files, entry, MAX_JSON)
    found = len(as_kept(entry.name, raw))
    if found != entry.size:
        kept[entry.name] = found
    return parse_object(raw, entry.name, MAX_JSON)


def _json(files: Files, entry: Entry, limit: int = MAX_JSON) -> dict[str, Any]:
    return parse_object(_read(files, entry, limit), entry.name, limit)


def _read(files: Files, entry: Entry, limit: int) -> bytes:
    if entry.size > limit:
        raise _fault(entry.name, f"has {entry.size} bytes, of which {limit} are read at most")
    return files.read(entry.name, 0, entry.size)


def _fault(name: str, what: str, remedy: str = "choose another model") -> SpecError:
    return SpecError(f"{quoted(name)} {what}: {remedy}.")
