"""Files of a Space: exactly what the app needs to run, and a README whose front matter says how.

The front matter is this app's own README's; what differs from Space to Space is put in. See the Hub's documentation,
spaces-config-reference.
"""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from backend import __version__
from backend.deploy.options import FREE_HARDWARE
from backend.errors import SpecError
from backend.processes.child import ROOT
from backend.settings import load_settings

README = "README.md"
TAG = "weightsmith"
"""Says in the front matter that a Space is one of this app."""

PARTS = ("app.py", "backend", "ui", "templates", "requirements.txt", "LICENSE")
DOCKER_PARTS = ("Dockerfile", ".dockerignore", "requirements-vllm.txt", "requirements-vllm-cpu.txt")

_SUFFIXES = (".py", ".css", ".j2", ".yaml", ".txt", "")  # a picture shows how the app looks, and is not run


def space_files(sdk: str, hardware: str) -> dict[str, bytes]:
    """Return everything that the Space is to hold, by name.

    Args:
        sdk: gradio or docker.
        hardware: What it runs on; suggested to whoever duplicates it.

    Raises:
        SpecError: The app's own files are not there, or git cannot say which they are.
    """
    parts = (*PARTS, *DOCKER_PARTS) if sdk == "docker" else PARTS
    names = [name for name in _names(parts) if Path(name).suffix in _SUFFIXES]
    if missing := [part for part in parts if not any(is_in(name, part) for name in names)]:
        raise SpecError(f"Could not deploy. '{missing[0]}' is missing in '{ROOT}': get the whole source tree.")
    return {**{name: (ROOT / name).read_bytes() for name in names}, README: _readme(sdk, hardware).encode()}


def is_in(name: str, part: str) -> bool:
    """Return whether a file is a part of the app, or lies in one."""
    return name == part or name.startswith(f"{part}/")


def _names(parts: tuple[str, ...]) -> list[str]:
    """List what git keeps of these parts; on a Space, where only that came, whatever is there."""
    if (ROOT / ".git").exists() and not load_settings().on_space:
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *parts]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as e:
            raise SpecError(f"Could not deploy. git cannot list the files of '{ROOT}': install git.") from e
        return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    found = (path for part in parts for path in ((ROOT / part).rglob("*") if (ROOT / part).is_dir() else [ROOT / part]))
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.is_file())


def _readme(sdk: str, hardware: str) -> str:
    """Write the Space's README: this app's front matter, fitted to the Space, and what the app is."""
    _, front, body = (ROOT / README).read_text(encoding="utf-8").split("---\n", 2)
    own = {"sdk", "sdk_version", "python_version", "app_file", "app_port", "suggested_hardware", "tags"}
    kept = {key: value for key, value in yaml.safe_load(front).items() if key not in own}
    head = {**kept, **_sdk(sdk, hardware), "tags": [TAG]}
    intro = re.split(r"\n(?:!\[|## |Deployed )", body)[0].strip()
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n{intro}\n\nDeployed with Weightsmith {__version__}.\n"


def _sdk(sdk: str, hardware: str) -> dict[str, Any]:
    if sdk == "docker":  # vLLM wants a GPU: an L4 is the smallest that has all of its kernels
        return {"sdk": sdk, "app_port": 7860, "suggested_hardware": "l4x1" if hardware == FREE_HARDWARE else hardware}
    return {
        "sdk": sdk,
        "sdk_version": version("gradio"),
        "python_version": "3.12",
        "app_file": "app.py",
        "suggested_hardware": hardware,
    }
