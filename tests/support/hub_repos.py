"""What a loopback Hub holds: repos, their commits and blobs, and what the Hub works out from them.

The rules are the Hub's as its client sees them: platform-facts C4 and C6.
"""

import hashlib
import json
import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".model", ".parquet", ".onnx", ".h5", ".zip", ".png")
LFS_SIZE = 10 * 1024 * 1024
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---(\r?\n|\Z)", re.DOTALL)
GITATTRIBUTES = b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % s.encode() for s in LFS_SUFFIXES)
LICENSES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m"
    " afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0"
    " cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0"
    " cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0"
    " cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl"
    " gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr"
    " mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr"
    " deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4"
    " grok2-community gemma unknown other"
)


@dataclass(frozen=True)
class Blob:
    """A file's contents; of a large file in an added folder only the path is kept."""

    source: bytes | Path
    lfs: bool

    def read(self) -> bytes:
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source

    @cached_property
    def size(self) -> int:
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with self.source.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    @cached_property
    def git_oid(self) -> str:
        data = self.pointer if self.lfs else self.read()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def listing(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": self.git_oid, "size": self.size, "path": path}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Announced(Blob):
    """A file whose bytes went to the Xet store: the commit says only its sha256 and size."""

    announced: tuple[str, int] = ("", 0)

    @property
    def sha256(self) -> str:  # type: ignore[override]
        return self.announced[0]

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.announced[1]


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    description: str
    files: Mapping[str, Blob]
    date: str


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


def blobs(source: Path | str | Mapping[str, bytes | str]) -> dict[str, Blob]:
    """Return the blobs of a folder, or of a mapping from name to contents."""
    if isinstance(source, Mapping):
        data = {name: c.encode() if isinstance(c, str) else c for name, c in source.items()}
        return {name: Blob(c, is_lfs(name, len(c))) for name, c in data.items()}
    folder = Path(source)
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: Blob(p, True) if is_lfs(name, p.stat().st_size) else Blob(p.read_bytes(), False)
        for name, p in found.items()
    }


@dataclass
class Repo:
    kind: str  # models, datasets or spaces
    id: str
    private: bool = False
    gated: bool | str = False  # True is "manual"
    downloads: int = 0
    used_storage: int | None = None  # bytes; otherwise those of main's files
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    granted: set[str] = field(default_factory=set)
    settings: dict[str, Any] = field(default_factory=dict)  # of a Space: see hub_spaces

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def commit(self, files: Mapping[str, Blob], title: str, description: str = "") -> Commit:
        """Add one commit whose tree is `files`."""
        parent = self.head.oid if self.commits else None
        tree = "".join(f"{name} {blob.etag}\n" for name, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{self.kind} {self.id} {parent} {title} {len(self.commits)}\n{tree}".encode()).hexdigest()
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.commits.append(Commit(oid, parent, title, description, dict(files), date))
        return self.head

    def at(self, revision: str) -> Commit | None:
        """Find a branch (main only), HEAD, a tag or a commit."""
        oid = self.tags.get(revision.removeprefix("refs/tags/"), revision)
        if oid in ("main", "HEAD", "refs/heads/main"):
            return self.head
        return next((c for c in self.commits if c.oid == oid), None)

    def info(self, commit: Commit) -> dict[str, Any]:
        """Say what `GET /api/models/{id}` does, worked out from the files as the Hub does."""
        card, config = front_matter(commit.files.get("README.md")), _json(commit.files.get("config.json"))
        info: dict[str, Any] = {
            "_id": hashlib.md5(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            "author": self.id.partition("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "gated": "manual" if self.gated is True else self.gated,
            "disabled": False,
            "downloads": self.downloads,
            "likes": 0,
            "createdAt": self.commits[0].date,
            "lastModified": commit.date,
            "cardData": card,
            "tags": tags(card, config),
            "siblings": [{"rfilename": name} for name in sorted(commit.files)],
            "usedStorage": self.used_storage or sum(b.size for b in commit.files.values()),
        }
        if self.kind == "models":
            info["modelId"] = self.id
            info["library_name"] = card.get("library_name") or ("transformers" if config else None)
            info["pipeline_tag"] = card.get("pipeline_tag") or ("text-generation" if config else None)
            info["config"] = {
                k: config[k] for k in ("architectures", "model_type", "quantization_config") if k in config
            }
            info["safetensors"] = parameters(commit.files)
        return info


@dataclass
class Collection:
    slug: str
    title: str
    private: bool
    items: list[str] = field(default_factory=list)  # ids of models

    def data(self) -> dict[str, Any]:
        """Say what `GET /api/collections/{slug}` does."""
        found = [{"_id": str(i), "id": name, "type": "model", "position": i} for i, name in enumerate(self.items)]
        known = {"slug": self.slug, "title": self.title, "private": self.private, "items": found}
        known |= {"owner": {"name": self.slug.partition("/")[0]}, "theme": "orange", "upvotes": 0}
        return known | {"lastUpdated": "2026-11-22T00:00:00.000Z"}


def front_matter(readme: Blob | None) -> dict[str, Any]:
    found = FRONT_MATTER.match(readme.read().decode("utf-8", "replace")) if readme else None
    data = yaml.safe_load(found[1]) if found else {}
    return data if isinstance(data, dict) else {}


def tags(card: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    task = card.get("pipeline_tag") or "text-generation"
    found = ["transformers", "safetensors", config.get("model_type"), task] if config else []
    found += card.get("tags") or []
    language = card.get("language") or []
    found += [language] if isinstance(language, str) else language
    for key in ("base_model", "license"):
        found += [f"{key}:{card[key]}"] if isinstance(card.get(key), str) else []
    if quantization := config.get("quantization_config"):
        found += [quantization.get("quant_method")]
    return [str(tag) for tag in dict.fromkeys(found) if tag]


def parameters(files: Mapping[str, Blob]) -> dict[str, Any] | None:
    """Count parameters by dtype from the safetensors headers."""
    counts: dict[str, int] = {}
    for name, blob in files.items():
        if not name.endswith(".safetensors") or isinstance(blob, Announced):
            continue
        data = blob.read()
        (length,) = struct.unpack("<Q", data[:8]) if len(data) > 8 else (0,)
        try:
            header = json.loads(data[8 : 8 + length])
        except ValueError:
            return None
        for tensor in (t for key, t in header.items() if key != "__metadata__"):
            count = 1
            for n in tensor["shape"]:
                count *= n
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + count
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def card_faults(content: str) -> list[str]:
    """Return what `POST /api/validate-yaml` refuses; a card without front matter is only warned of."""
    found = FRONT_MATTER.match(content)
    if not found:
        return []
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as e:
        return [f"YAML: {e}"]
    if not isinstance(data, dict):
        return ["YAML metadata must be an object"]
    faults = []
    for key, kind in (("base_model", "models"), ("datasets", "datasets")):
        values = data.get(key) or []
        for value in values if isinstance(values, list) else [values]:
            if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(value)):
                faults.append(f'"{key}" with value "{value}" is not valid. Use a model id from https://hf.co/{kind}.')
    licenses = data.get("license") or []
    for value in licenses if isinstance(licenses, list) else [licenses]:
        if value not in LICENSES.split():
            faults.append(f'"license" must be one of [{LICENSES}]')
    return faults


def _json(blob: Blob | None) -> dict[str, Any]:
    try:
        data = json.loads(blob.read()) if blob else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
