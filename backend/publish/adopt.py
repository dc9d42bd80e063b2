"""Folder: one with weights that was made elsewhere becomes an artifact that says what its own files say, and no more.

PEFT's and transformers' `save_pretrained` write such folders, and so do GPTQModel, AutoAWQ, llm-compressor and
AutoGPTQ, whose settings lie in a `quantize_config.json`. They name places of the machine that wrote them: what is no
repo id is left out.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from backend.artifacts.artifact import BASE_CARD, ELSEWHERE, MANIFEST, Artifact, File, now
from backend.artifacts.sealing import manifest, partial, seal
from backend.disk import scratch, sha256
from backend.errors import HardwareError, HubError, SpecError
from backend.hub.files import Entry, HubFiles, LocalFiles
from backend.hub.front_matter import read_card
from backend.hub.ids import parse_repo_id
from backend.model_folder import ADAPTER, MAX_JSON, is_license
from backend.models.admission import admit, admit_adapter
from backend.models.config import is_settings, without_code
from backend.models.inspection import inspect
from backend.progress import Report, silent
from backend.publish.card.base_card import BaseCard, licensed, own_card
from backend.publish.card.card import README, written
from backend.publish.files import outgoing
from backend.strict_json import parse_object
from backend.weights.header import read_header

_PICKLED = re.compile(r"(adapter_model|pytorch_model.*)\.bin")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAMES_A_PLACE = {
    "config.json": ("_name_or_path",),
    "tokenizer_config.json": ("name_or_path", "tokenizer_file", "special_tokens_map_file"),
    "adapter_config.json": ("base_model_name_or_path",),
    "quantize_config.json": ("model_name_or_path", "model_file_base_name"),
}
"""The fields in which libraries write down where they read a model from."""

_OF_ADAPTERS = (
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters",
    "modules_to_save", "bias", "use_rslora", "use_dora",
)  # fmt: skip


class Preview(NamedTuple):
    """What a folder would become on the Hub."""

    artifact: Artifact
    card: str
    files: dict[str, int]  # bytes by name


def is_made_elsewhere(folder: Path) -> bool:
    """Return whether a folder is no artifact, and is published as it was found."""
    return not (folder / MANIFEST).is_file()


def describe(folder: Path, base_model: str | None = None) -> Artifact:
    """Say what a folder with weights is: only what its config, headers and card say; nothing is loaded or hashed.

    Args:
        folder: With a model or an adapter in it.
        base_model: The Hub id of what it was made from; None takes what its files name, if that is an id.

    Raises:
        SpecError: It holds no weights that are published, and what to do.
    """
    adapter = _is_adapter(folder)
    facts = None if adapter else inspect(str(folder))
    config = _read(folder, "adapter_config.json") if adapter else _config(folder)
    named = base_model or _named_base(folder, config)
    found: dict[str, Any] = {}
    if facts is None:
        kind = "adapter"
        found = {name: config[name] for name in _OF_ADAPTERS if config.get(name) not in (None, [])}
        versions = {"peft": config.get("peft_version")}
        read_header(folder / ADAPTER)
    else:
        settings = config.get("quantization_config") or {}
        kind = "quantized" if settings else "model"
        plain = {key: value for key, value in settings.items() if not isinstance(value, dict) and value is not None}
        found = {"method": plain.pop("quant_method")} | plain if settings else {}
        found |= {"architecture": facts.architecture, "parameters": facts.parameters, "dtype": facts.dtype}
        versions = {"transformers": config.get("transformers_version")}
    revision = config.get("revision") if adapter and named == config.get("base_model_name_or_path") else None
    return Artifact(
        kind=kind,
        stage=ELSEWHERE,
        base_model=named,
        revision=revision if isinstance(revision, str) and _COMMIT.fullmatch(revision) else None,
        options=found,
        versions={name: number for name, number in versions.items() if isinstance(number, str)},
        created=now(),
    )


def adopt(folder: Path, target: Path, base_model: str | None, report: Report, token: str | None = None) -> Artifact:
    """Make an artifact of a folder: its files, without what is no model's and without places of its author's machine.

    Large files are links to the same bytes where both folders lie on one disk. The folder itself is not changed.

    Args:
        folder: With a model or an adapter in it.
        target: The artifact's folder; must not exist.
        base_model: As describe() takes it.
        report: Receives what is left out, and the bytes hashed.
        token: Of who may read the base model's license, where the folder's own card names none.

    Raises:
        SpecError: As describe() does.
        HardwareError: There is no room for a copy.
    """
    artifact, taken = describe(folder, base_model), _taken(folder)
    here = {entry.name for entry in LocalFiles(folder).entries()}
    if others := sorted({name.split("/")[0] for name in here - taken.keys()}):
        report.log(f"Not published: {', '.join(others)}.")
    draft, hashes = partial(target), {}
    total, done = sum(taken.values()), 0
    for name in taken:
        text = _text(folder, name, artifact)
        (draft / name).parent.mkdir(exist_ok=True)
        if text is None:
            _link(folder / name, draft / name)
        else:
            (draft / name).write_bytes(text)
        hashes[name] = sha256(draft / name)
        done += taken[name]
        report.progress("hashing", done, total, "bytes")
    said, texts = _said(folder, artifact, token, report)
    for name, data in texts.items():
        (draft / name).write_bytes(data)
    (draft / BASE_CARD).write_text(said.model_dump_json(exclude_defaults=True, indent=2) + "\n", encoding="utf-8")
    return seal(draft, target, artifact, hashes)


@contextmanager
def as_artifact(folder: Path, report: Report, token: str | None = None) -> Iterator[Path]:
    """Yield an artifact's folder; of one made elsewhere an artifact that is there for as long as the block lasts.

    Args:
        folder: An artifact, or one with a model or an adapter in it.
        report: As adopt() takes it.
        token: As adopt() takes it.

    Raises:
        SpecError, HardwareError: As adopt() does.
    """
    if not is_made_elsewhere(folder):
        yield folder
        return
    beside = folder.resolve().parent  # on its disk nothing needs to be copied
    with scratch(beside if os.access(beside, os.W_OK) else Path(tempfile.gettempdir())) as place:
        adopt(folder, place / folder.resolve().name, None, report, token)
        yield place / folder.resolve().name


def preview(
    folder: Path,
    repo_id: str | None = None,
    base_model: str | None = None,
    card: str | None = None,
    token: str | None = None,
    variants: Sequence[str] = (),
) -> Preview:
    """Say what a folder is, and show its card and its files as they would be published; nothing is written.

    Args:
        folder: An artifact, or one made elsewhere.
        repo_id: Where it goes.
        base_model: As describe() takes it.
        card: The user's own text of the card.
        token: As adopt() takes it.
        variants: As build_card() takes them.

    Raises:
        SpecError: It cannot be published, and why.
    """
    if not is_made_elsewhere(folder):
        sent = outgoing(folder, repo_id, card=card, variants=variants)
        artifact = Artifact.model_validate_json(sent[MANIFEST].read())
        return Preview(artifact, sent[README].read().decode(), {name: file.size for name, file in sent.items()})
    artifact, taken = describe(folder, base_model), _taken(folder)
    sizes = {name: len(_text(folder, name, artifact) or b"") or size for name, size in taken.items()}
    said, licenses = _said(folder, artifact, token, silent())
    sizes |= {name: len(data) for name, data in licenses.items()}
    artifact = artifact.model_copy(update={"files": {name: File(size=sizes[name], sha256="0" * 64) for name in sizes}})
    texts = written(folder, repo_id, artifact, card, said, variants)
    sizes |= {name: len(data) for name, data in texts.items()}
    files = {name: File(size=size, sha256="0" * 64) for name, size in sizes.items()}
    sizes[MANIFEST] = len(manifest(artifact.model_copy(update={"files": files})))
    return Preview(artifact, texts[README].decode(), dict(sorted(sizes.items())))


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter; refuse what holds no weights that can be published."""
    names = {entry.name for entry in LocalFiles(folder).entries()}
    adapter = "adapter_config.json" in names and "config.json" not in names
    pickle = next((name for name in sorted(names) if _PICKLED.fullmatch(name)), None)
    if pickle and not any(name.endswith(".safetensors") for name in names):
        load = "a PeftModel" if adapter else "AutoModelForCausalLM.from_pretrained()"
        raise SpecError(
            f"'{folder.name}' holds only pickled weights, '{pickle}', which can run code when they are opened: if you"
            f" trust them, load them with {load} and write safetensors with save_pretrained()."
        )
    if adapter and ADAPTER not in names:
        raise SpecError(f"'{folder.name}' lacks '{ADAPTER}': save the adapter again with save_pretrained().")
    return adapter


def _taken(folder: Path) -> dict[str, int]:
    """Return the files that are published, with their bytes: what makes the model, and its licenses."""
    files = LocalFiles(folder)
    taken: tuple[Entry, ...] = admit_adapter(files) if _is_adapter(folder) else admit(files, whole=True).files
    own = [entry for entry in files.entries() if entry.name == "quantize_config.json"]  # of AutoGPTQ
    found = {entry.name: entry.size for entry in (*taken, *own)}
    return {name: found[name] for name in sorted(found) if not name.lower().startswith("readme")}


def _text(folder: Path, name: str, artifact: Artifact) -> bytes | None:
    """Return a settings file without places of another machine and without code; None where it can stay as it is."""
    if name not in _NAMES_A_PLACE and not is_settings(name):
        return None
    data = _read(folder, name)
    kept = without_code(data, name)
    kept = {
        key: value
        for key, value in kept.items()
        if not (key in _NAMES_A_PLACE.get(name, ()) and not _id(folder, value))
    }
    if name == "config.json":
        kept = _config(folder, kept)
    if name == "adapter_config.json":
        kept |= {"base_model_name_or_path": artifact.base_model}  # PEFT asks for the field
    return None if kept == data else json.dumps(kept, indent=2, ensure_ascii=False).encode() + b"\n"


def _config(folder: Path, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a model's config; AutoGPTQ wrote what the weights are into a file of its own, which few readers open."""
    found = dict(config or _read(folder, "config.json"))
    if "quantization_config" not in found and (folder / "quantize_config.json").is_file():
        settings = _read(folder, "quantize_config.json")
        plain = {key: value for key, value in settings.items() if key not in _NAMES_A_PLACE["quantize_config.json"]}
        method = plain.get("quant_method")
        found["quantization_config"] = plain | {"quant_method": method if method in ("gptq", "awq") else "gptq"}
    return found


def _named_base(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the one base model that a folder's card or config names by its Hub id."""
    card = own_card(read_card(LocalFiles(folder))).base_model
    if card:
        return _id(folder, card[0]) if len(card) == 1 else None
    return _id(folder, config.get("base_model_name_or_path"))


def _id(folder: Path, value: Any) -> str | None:
    """Return a value that is a repo id with its namespace, and no path of this machine that only looks like one."""
    if not isinstance(value, str) or any((place / value).exists() for place in (Path.cwd(), folder, folder.parent)):
        return None
    try:
        return parse_repo_id(value, namespaced=True)
    except ValueError:
        return None


def _said(folder: Path, artifact: Artifact, token: str | None, report: Report) -> tuple[BaseCard, dict[str, bytes]]:
    """Return what the folder's card says, and the texts of the base model's license where that card names none."""

    from backend.hub import client

    said, base = own_card(read_card(LocalFiles(folder))), artifact.base_model
    if said.license or base is None:
        return said, {}
    try:
        commit = artifact.revision or client.resolve(base, None, token)
        files = HubFiles(base, commit, token)
        missing = [e for e in files.entries() if is_license(e.name, e.size) and not (folder / e.name).exists()]
        return licensed(said, read_card(files)), {e.name: files.read(e.name, 0, e.size) for e in missing}
    except HubError as e:
        report.log(f"The license of '{base}' is not carried over: {e}")
        return said, {}


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return dict(parse_object((folder / name).read_bytes(), name, MAX_JSON))
    except OSError as e:
        raise SpecError(f"Could not read '{name}' in '{folder.name}'. {e.strerror}: check the file.") from e


def _link(source: Path, target: Path) -> None:
    """Link a file under a second name, or copy it where no link can be made."""
    try:
        os.link(source, target)
    except OSError:  # another disk, another owner, or a disk without links
        try:
            shutil.copyfile(source, target)
        except OSError as e:
            raise HardwareError(
                f"Could not copy '{source.name}' to '{target.parent}'. {e.strerror}: free some room there."
            ) from e
