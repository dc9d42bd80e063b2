"""README says what is true: its commands, its methods, its settings, its tree."""

import re
import shlex
from importlib import import_module

import yaml

from backend.cli import COMMANDS
from backend.processes.child import ROOT
from backend.quantize import METHODS
from backend.settings import Settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_command_of_the_quick_start_is_understood():
    lines = [line for line in section("Quick start").splitlines() if line.startswith("python -m backend ")]
    assert len(lines) == len(COMMANDS)
    for line in lines:
        name, *argv = shlex.split(line)[3:]
        command = import_module(f"backend.cli.{name}").COMMAND
        known = {"--" + field.replace("_", "-") for field in command.model_fields}
        assert {word for word in argv if word.startswith("--")} <= known


def test_make_targets_of_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"app", "demo", "test", "lint"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_method_table_is_the_registry():
    assert re.findall(r"^\| `(\w+)` \|", section("Methods"), re.MULTILINE) == list(METHODS)


def test_the_settings_table_is_the_settings_model():
    named = set(re.findall(r"`WEIGHTSMITH_(\w+)`", section("Settings")))
    assert {name.lower() for name in named} == set(Settings.model_fields)


def test_the_tree_is_the_tree():
    listed = re.findall(r"^(\s*)([\w.]+/?)  ", section("Tree"), re.MULTILINE)
    assert len(listed) > 20
    for indent, name in listed:
        assert (ROOT / ("backend" if indent.strip("\n") else "") / name).exists(), name
    shown = {name.rstrip("/") for indent, name in listed if indent.strip("\n")}
    there = {path.name for path in (ROOT / "backend").iterdir() if not path.name.startswith("__")} | {"__main__.py"}
    assert there - {"__main__.py"} == shown - {"__main__.py"}


def test_the_front_matter_suits_the_requirements():
    head = yaml.safe_load(README.split("---")[1])
    assert head["python_version"] == "3.12"
    assert head["sdk_version"] == re.search(r"gradio\[oauth\]>=([\d.]+)", REQUIREMENTS)[1] + ".0"
    assert head["hf_oauth_scopes"] == ["contribute-repos", "gated-repos"]


def test_pictures_of_readme_are_there():
    for target in re.findall(r"\]\((?!http)([\w/.]+)\)", README):
        assert (ROOT / target).is_file(), target
