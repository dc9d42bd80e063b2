"""The extension of Hugging Face's command line: what it is installed with, and a push by the real `hf`."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from huggingface_hub.cli.extensions import ExtensionManifest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backend.artifacts.sealing import open_artifact
from backend.processes.child import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTS = """
import importlib.abc, json, sys
class Absent(importlib.abc.MetaPathFinder):
    names = set(json.loads(sys.argv[1]))
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import backend.extension, backend.jobs.worker, backend.publish.push
"""


def installed_with(names):
    """Return distributions and everything that they want."""
    found, todo = set(), {canonicalize_name(name) for name in names}
    while todo:
        found |= todo
        wanted = [Requirement(text) for name in todo for text in requires(name) or []]
        wanted = [w for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
        todo = {canonicalize_name(w.name) for w in wanted} - found
    return found


def test_it_can_be_imported_with_nothing_but_what_it_is_installed_with():
    there = installed_with(Requirement(text).name for text in PROJECT["dependencies"])
    owned = packages_distributions().items()
    absent = [name for name, owners in owned if not there & {canonicalize_name(owner) for owner in owners}]
    assert {"torch", "gradio", "transformers", "numba"} <= set(absent)
    command = [sys.executable, "-c", IMPORTS, json.dumps(absent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_extension_wants_what_the_studio_wants():
    studio = {r.name: r for r in map(_requirement, (ROOT / "requirements.txt").read_text().splitlines()) if r}
    for wanted in map(Requirement, PROJECT["dependencies"]):
        if wanted.name in studio and wanted.name != "pydantic":  # whose ceiling is gradio[mcp]'s
            assert wanted.specifier == studio[wanted.name].specifier


def _requirement(line):
    text = line.partition("#")[0].strip()
    return Requirement(text) if text else None


@pytest.fixture
def home(tmp_path):
    """A home in which the extension is installed as `hf extensions install` does it, but from this tree."""
    folder = tmp_path / "home" / ".local" / "share" / "hf" / "extensions" / "hf-weightsmith"
    venv.EnvBuilder(symlinks=True).create(folder / "venv")
    python, site = folder / "venv" / "bin" / "python", sysconfig.get_paths()["purelib"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "venv" / "lib" / version / "site-packages" / "borrowed.pth").write_text(site)  # nothing is downloaded
    archive = tmp_path / "weightsmith.tar.gz"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(archive, "w:gz") as tar:
        for name in filter(None, names.split("\0")):
            tar.add(ROOT / name, f"weightsmith/{name}")
    flags = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([python, "-m", "pip", "install", *flags, archive], check=True)
    ExtensionManifest(
        owner="acme", repo="hf-weightsmith", repo_id="acme/hf-weightsmith", short_name="weightsmith",
        executable_path=str(folder / "venv" / "bin" / "hf-weightsmith"), type="python", installed_at=datetime.now(UTC),
        description=PROJECT["description"],
    ).save(folder)  # fmt: skip
    return tmp_path / "home"


def hf(home, cwd, *argv):
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "WEIGHTSMITH_DATA")}
    env |= {"HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_TOKEN": "hf_write"}
    command = [Path(sys.executable).with_name("hf"), "weightsmith", *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.real
def test_hf_publishes_a_folder_through_the_extension(hub, home, make_artifact, tmp_path):
    here, artifact = tmp_path / "here", make_artifact()
    here.mkdir()
    done = hf(home, here, "publish", str(artifact), "--repo-id", "me/from-hf", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["location"] == f"{hub.url}/me/from-hf"
    assert set(hub.files("me/from-hf")) >= {*open_artifact(artifact).files} - {"base_card.json"}
    assert "base_model: acme/tiny" in hub.files("me/from-hf")["README.md"].decode()
    assert not list(here.iterdir())
    again = hf(home, here, "publish", str(artifact), "--repo-id", "you/from-hf")
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("error: Could not publish to 'you/from-hf'. 'me' does not belong")
    assert "hf weightsmith publish" in hf(home, here, "publish", "--help").stdout
