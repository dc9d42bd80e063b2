"""Admission: which files of a model are taken, and which models are refused before any library may touch them.

Reliability §4.5: only our own JSON reader sees a repo until it is admitted; nothing here runs, unpickles or renders.
"""

import re
from typing import Any, NamedTuple

from backend.errors import AdapterError, SpecError
from backend.hub.files import Entry, Files
from backend.hub.names import parse_repo_id
from backend.models.config import Config, check_config, refuse_code
from backend.strict_json import parse_object, quoted

MAX_JSON = 5_000_000
MAX_TOKENIZER = 100_000_000
MAX_SHARDS = 1000  # each is asked for its header; the largest models have some hundred
MAX_TEXT = 1_000_000  # chat templates and cards

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors")
_TAKEN = re.compile(
    r"config\.json|generation_config\.json|tokenizer[A-Za-z0-9_.-]*\.json|[A-Za-z0-9_-]+\.model|vocab\.(json|txt)"
    r"|merges\.txt|added_tokens\.json|special_tokens_map\.json|chat_template\.(jinja|json)"
    r"|(LICENSE|LICENCE|NOTICE|USE_POLICY|README)[A-Za-z0-9_-]*(\.(md|txt))?",
    re.IGNORECASE,
)
_TAKEN_OF_ADAPTERS = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|tokenizer[A-Za-z0-9_.-]*\.json|[A-Za-z0-9_-]+\.model"
    r"|vocab\.(json|txt)|merges\.txt|added_tokens\.json|special_tokens_map\.json|chat_template\.(jinja|json)"
    r"|README(\.md)?",
    re.IGNORECASE,
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib")
_FOREIGN = {".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX"}


class Admitted(NamedTuple):
    """A model that may be looked at, downloaded and, offline and without repo code, loaded."""

    files: tuple[Entry, ...]  # what is taken, weights included
    weights: tuple[Entry, ...]
    config: Config
    weight_map: dict[str, str] | None  # tensor → shard, where there is an index
    chat_template: bool


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
    config = check_config(_json(files, entries["config.json"]))
    weight_map = _weight_map(files, entries)
    shards = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]
    weights = tuple(entries[name] for name in shards)
    _check_sizes(config, weights)
    taken = tuple(e for e in entries.values() if "/" not in e.name and _TAKEN.fullmatch(e.name))
    template = _check_texts(files, taken, whole)
    index = (entries[INDEX],) if weight_map is not None else ()
    return Admitted((*taken, *index, *weights), weights, config, weight_map, template)


def admit_adapter(files: Files) -> tuple[Entry, ...]:
    """Give the files that are taken of an adapter's repo, or say in one sentence why none are.

    Raises:
        SpecError: The file, the field, and what to do.
        HubError: The Hub could not be asked.
    """
    entries = {entry.name: entry for entry in files.entries()}
    for name, entry in entries.items():
        if entry.link:
            raise _fault(name, "is a symbolic link", "copy the folder with `cp -rL` and give the copy")
    taken = tuple(e for e in entries.values() if "/" not in e.name and _TAKEN_OF_ADAPTERS.fullmatch(e.name))
    _check_texts(files, taken, whole=False)
    return taken


def _check_names(entries: dict[str, Entry], files: Files) -> None:
    for name, entry in entries.items():
        if not name.isprintable() or name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise _fault(name, "is no name for a model's file")
        if entry.link:
            raise _fault(name, "is a symbolic link", "copy the folder with `cp -rL` and give the copy")
        if name.lower().endswith((".py", ".so", ".pyc")) or name.startswith("custom_generate/"):
            raise _fault(name, "is code that the repo brings along, which is never run here")
    if "adapter_config.json" in entries:
        raise _adapter(files, entries)
    if "config.json" not in entries:
        raise SpecError("'config.json' is missing: choose a model in transformers' format.")
    if SINGLE not in entries and INDEX not in entries:
        raise _no_weights(list(entries))


def _adapter(files: Files, entries: dict[str, Entry]) -> SpecError:
    if "config.json" in entries:
        return _fault("adapter_config.json", "says that an adapter lies beside the model", "choose one without it")
    named = _json(files, entries["adapter_config.json"]).get("base_model_name_or_path")
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
                f"This model has only pickled weights such as {quoted(name)}, which can run code when they are opened:"
                " ask its author for safetensors, or convert it at https://huggingface.co/spaces/safetensors/convert"
            )
    for name in names:
        if what := next((words for suffix, words in _FOREIGN.items() if name.lower().endswith(suffix)), None):
            return SpecError(f"This model has only {what} weights, {quoted(name)}: choose the one it was made from.")
    return SpecError(f"{SINGLE!r} and {INDEX!r} are missing: choose a model with safetensors weights.")


def _weight_map(files: Files, entries: dict[str, Entry]) -> dict[str, str] | None:
    """Read the index; like transformers, a single file is taken before an index."""
    if SINGLE in entries:
        return None
    weight_map = _json(files, entries[INDEX]).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fault(INDEX, "has no weight_map")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or ".." in shard:
            raise _fault(INDEX, f"keeps {quoted(tensor)} in {quoted(shard)}, which is no name for a shard")
        if shard not in entries:
            raise _fault(INDEX, f"lists the shard {quoted(shard)}, which is missing", "choose a complete model")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise _fault(INDEX, f"lists more than {MAX_SHARDS} shards")
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


def _check_texts(files: Files, taken: tuple[Entry, ...], whole: bool) -> bool:
    """Check every other JSON file, and say whether there is a chat template."""
    template = False
    for entry in taken:
        name = entry.name.lower()
        if name in ("chat_template.jinja", "readme.md") and entry.size > MAX_TEXT:
            raise _fault(entry.name, f"has {entry.size} bytes, of which {MAX_TEXT} are allowed")
        template = template or (name == "chat_template.jinja" and entry.size > 0)
        if not name.endswith(".json") or name == "config.json":
            continue
        large = name in ("tokenizer.json", "vocab.json")
        if large and not whole:
            continue
        data = _json(files, entry, MAX_TOKENIZER if large else MAX_JSON)
        if not large:
            refuse_code(data, entry.name)
        if name in ("tokenizer_config.json", "chat_template.json"):
            template = _check_template(data, entry.name) or template
    return template


def _check_template(data: dict[str, Any], name: str) -> bool:
    """Check a chat template, which is text, or a list of named texts that transformers saves as files."""
    found = data.get("chat_template")
    if isinstance(found, list):
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict) and _plain(t.get("name"), name)}
    named = found if isinstance(found, dict) else {"default": found} if found is not None else {}
    for key, text in named.items():
        _plain(key, name)
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise _fault(name, f"has a chat_template {quoted(key)} that is no text of at most {MAX_TEXT} characters")
    return any(named.values())


def _plain(key: Any, name: str) -> bool:
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", key):
        raise _fault(name, f"names a chat_template {quoted(key)}, which is no plain word")
    return True


def _json(files: Files, entry: Entry, limit: int = MAX_JSON) -> dict[str, Any]:
    if entry.size > limit:
        raise _fault(entry.name, f"has {entry.size} bytes, of which {limit} are read at the most")
    return parse_object(files.read(entry.name, 0, entry.size), entry.name, limit)


def _fault(name: str, what: str, remedy: str = "choose another model") -> SpecError:
    return SpecError(f"{quoted(name)} {what}: {remedy}.")
