"""Floors: imports point one way, down the table below; sideways only where no circle of packages comes of it."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
while not (ROOT / "pyproject.toml").is_file():
    ROOT = ROOT.parent

FLOORS = (
    ("app", "ui", "cli", "deploy", "extension", "__main__"),
    ("jobs",),
    ("stages",),
    ("recipes", "spec"),
    ("finetune", "merge", "quantize", "evaluate", "check", "publish", "serve"),
    ("data", "models", "artifacts", "stage", "executors"),
    ("hub", "weights", "machine", "processes"),
    ("options", "progress", "errors", "disk", "intervals", "settings", "strict_json", "strict_yaml", "model_folder",
     "credentials", "backend"),
)  # fmt: skip
"""From the top: packages and modules of `backend/`, `ui/` and `app.py`; `backend` alone is its version."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules(root: Path) -> dict[str, str]:
    """Return the source of every module of the app by its dotted name."""
    found = {}
    for path in [root / "app.py", *sorted((root / "backend").rglob("*.py")), *sorted((root / "ui").rglob("*.py"))]:
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    return found


def room(module: str) -> str:
    """Return the package or module that the table names."""
    first, *others = module.split(".")
    return others[0] if first == "backend" and others else first


@cache
def imported(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Return what a source imports, wherever in it."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(module: str, source: str, known: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Return the modules of the app that one imports, wherever in it, each with its line."""
    for node in imported(source):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module}:{node.lineno}: a relative import: write it from backend or ui"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in whole]
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ("app", "backend", "ui"))


def faults(known: Mapping[str, str]) -> list[str]:
    """Return what breaks the table."""
    found = [f"{module} is on no floor" for module in known if room(module) not in FLOOR]
    beside: dict[str, set[str]] = {}
    for module, source in known.items():
        for line, other in imports(module, source, known):
            below, here = FLOOR.get(room(other), 99), FLOOR.get(room(module), 99)
            if below < here:
                found.append(f"{module}:{line} imports {other}, which is above it")
            elif below == here and room(module) != room(other):
                beside.setdefault(room(module), set()).add(room(other))
    try:
        TopologicalSorter(beside).prepare()
    except CycleError as e:
        found.append(f"a circle: {' → '.join(e.args[1])}")
    return found


def test_every_import_points_down_or_sideways_without_a_circle() -> None:
    assert faults(modules(ROOT)) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("backend.hub.x", "from backend.models import facts", "backend.hub.x:1 imports backend.models.facts"),
        ("backend.hub.x", "import backend.models.facts", "backend.hub.x:1 imports backend.models.facts"),
        ("backend.hub.x", "def f():\n    from backend.models.facts import F", "backend.hub.x:2 imports"),
        ("backend.hub.x", "if TYPE_CHECKING:\n    from backend.models.facts import F", "backend.hub.x:2 imports"),
        ("backend.stages.x", "from ui.page import build", "backend.stages.x:1 imports ui.page"),
        ("backend.machine.x", "import backend.processes.child", "a circle: "),
        ("backend.helpers", "", "backend.helpers is on no floor"),
        ("backend.helpers.more", "", "backend.helpers.more is on no floor"),
    ],
)
def test_what_breaks_the_table_is_found(module: str, source: str, fault: str) -> None:
    [found] = faults(modules(ROOT) | {module: source})
    assert found.startswith(fault)


def test_every_room_of_the_table_is_there() -> None:
    assert {room(module) for module in modules(ROOT)} == set(FLOOR)
