"""A copy of the house to which something is added: modules, and the lines that register them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from backend.processes.child import ROOT

PARTS = ("backend", "ui", "templates")


def grown(folder: Path, modules: Mapping[str, Path], lines: Mapping[str, Mapping[str, str]]) -> Path:
    """Copy the house and add to it.

    Args:
        folder: Where to; it must not exist.
        modules: By where each goes, such as `backend/quantize/toy.py`.
        lines: By file, what each new line is put before.
    """
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part)
    for place, module in modules.items():
        shutil.copy(module, folder / place)
    for file, added in lines.items():
        text = (folder / file).read_text(encoding="utf-8")
        for before, line in added.items():
            assert text.count(before) == 1, f"{file}: {before!r}"
            text = text.replace(before, f"{line}\n{before}")
        (folder / file).write_text(text, encoding="utf-8")
    return folder


def python(house: Path, *arguments: str, data: Path) -> str:
    """Run Python in a house; return what it printed.

    Args:
        house: From grown().
        arguments: Such as `-m backend …`.
        data: The data folder.
    """
    env = os.environ | {"WEIGHTSMITH_DATA": str(data), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *arguments], cwd=house, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
