"""Outgoing: exactly the files that leave this machine, each looked at before it does.

Known kinds of files only, no pickles, no tokens and no paths of this machine; the card and a manifest that fits what is
published are made here, last.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from backend.artifacts.artifact import ELSEWHERE, MANIFEST, Artifact, File, stays_here
from backend.artifacts.sealing import manifest, open_artifact
from backend.credentials import HUB_TOKEN
from backend.errors import SpecError
from backend.model_folder import Kind, kind_of
from backend.publish.card.card import README, written

WEIGHTS = ".safetensors"
_BINARY = re.compile(r".*(\.safetensors|\.png|\.model(\.v\w+)?|\.tokenizer)")
_KNOWN = re.compile(
    r"[\w.-]+\.safetensors(\.index\.json)?|(config|quantize_config|adapter_config)\.json|recipe\.yaml"
    r"|training_loss\.png",
    re.ASCII,
)
"""Files of an artifact beside those that go along with its base model's."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
_WORDS: tuple[Kind, ...] = ("vocabulary", "template", "license")
"""Kinds of files in which a path is a word like any other, and no path of this machine."""

_PATH = re.compile(
    r"file://\S+|[A-Za-z]:\\{1,2}Users\\|(?<![\w.:/~-])/"
    r"(?:home|root|tmp|var|Users|mnt|data|work|workspace|content|scratch|opt|srv)/[\w.@+-][^\s\"'<>|`)]*"
)


class OutgoingFile(NamedTuple):
    """One file that is published."""

    source: Path | bytes | None  # None: it was sent ahead and is not here any more
    size: int
    sha256: str

    def read(self) -> bytes:
        """Return the whole content of a file that is here."""
        assert self.source is not None
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source


def outgoing(
    folder: Path,
    repo_id: str | None = None,
    token: str | None = None,
    sent: Collection[str] = (),
    card: str | None = None,
    variants: Sequence[str] = (),
) -> dict[str, OutgoingFile]:
    """Return the files that publishing an artifact would send, by name; nothing is written.

    Args:
        folder: A sealed artifact; verify() it first, for its recorded sha256 are taken over.
        repo_id: Where it goes, for the card.
        token: What publishes; it must stand in no file.
        sent: Weights that were sent ahead and need not be here any more.
        card: The user's own text of the card.
        variants: As build_card() takes them.

    Raises:
        SpecError: The folder is no artifact, or holds what must not leave; the file and what to do.
    """
    artifact = open_artifact(folder, sent)
    for path in sorted(folder.rglob("*")):
        _check_kind(path, folder, artifact)
    files = {
        name: OutgoingFile(None if name in sent else folder / name, file.size, file.sha256)
        for name, file in artifact.files.items()
        if name != README and not stays_here(name)
    }
    if not any(name.endswith(WEIGHTS) for name in files):
        raise SpecError(f"'{folder.name}' holds no weights: choose the artifact of a stage that makes a model.")
    files |= {name: _made(data) for name, data in written(folder, repo_id, artifact, card, None, variants).items()}
    entries = {name: File(size=file.size, sha256=file.sha256) for name, file in sorted(files.items())}
    # so that it opens as an artifact wherever it is downloaded
    files[MANIFEST] = _made(manifest(artifact.model_copy(update={"files": entries})))
    public = artifact.stage != ELSEWHERE and artifact.base_model is not None
    for name, file in files.items():
        _check_text(name, file, folder.resolve(), token, public and kind_of(name) is not None)
    return dict(sorted(files.items()))


def _check_kind(path: Path, folder: Path, artifact: Artifact) -> None:
    name = path.relative_to(folder).as_posix()
    where = f"'{name}' in '{folder.name}'"
    if path.is_symlink():
        raise SpecError(f"{where} is a symbolic link: only files are published.")
    if path.is_dir() or name in (MANIFEST, README) or stays_here(name):
        return
    if path.suffix in _PICKLES:
        raise SpecError(f"{where} may hold a pickle, which runs code when it is loaded: publish safetensors only.")
    if not (_KNOWN.fullmatch(name) or kind_of(name)):
        raise SpecError(f"{where} is nothing that a model repo needs: remove it, or make the artifact again.")
    if name not in artifact.files:
        raise SpecError(f"{where} was not made with the artifact: remove it, or make the artifact again.")


def _check_text(name: str, file: OutgoingFile, folder: Path, token: str | None, known: bool) -> None:
    """Refuse a text with a token or a path of this machine in it, or that is no text.

    Args:
        name: Of the file.
        file: Of an artifact.
        folder: The artifact's.
        token: What publishes.
        known: Whether the file is the base model's on the Hub, which has it already, its author's places included.
    """
    if _BINARY.fullmatch(name):
        return
    try:
        text = file.read().decode("utf-8", "replace" if known else "strict")
    except UnicodeDecodeError as e:
        raise SpecError(f"'{name}' is not text (UTF-8), as a file of this name is: make the folder again.") from e
    own = [str(path) for path in (folder.parent, Path.cwd()) if len(path.parts) > 2]
    check_words(name, text, token, own, known or kind_of(name) in _WORDS)


def check_words(name: str, text: str, token: str | None, own: Sequence[str] = (), known: bool = False) -> None:
    """Refuse a text with a token or a path of this machine in it.

    Args:
        name: Of the file that it stands in.
        text: The text.
        token: What publishes.
        own: Paths that are none of anybody else's.
        known: Whether other paths are words like any other.

    Raises:
        SpecError: What must not leave, and what to do.
    """
    if HUB_TOKEN.search(text) or (token and token in text):
        raise SpecError(
            f"'{name}' holds a token of the Hub: remove it, and revoke it at https://huggingface.co/settings/tokens"
        )
    found = None if known else _PATH.search(text)
    named = [found[0]] if found else [path for path in own if path in text]
    if named:
        raise SpecError(f"'{name}' names a path of this machine, '{named[0][:120]}': make the folder again without it.")


def _made(data: bytes) -> OutgoingFile:
    return OutgoingFile(data, len(data), hashlib.sha256(data).hexdigest())
