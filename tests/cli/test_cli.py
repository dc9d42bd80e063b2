"""How the command line is read: its help, its flags, and what a command does not load before it begins to work."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from backend.cli import COMMANDS, main
from backend.cli.command import Argument, Command, read, with_options
from backend.options import Frozen
from backend.processes.child import ROOT


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as e:
        main([*argv, "--help"])
    assert e.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_says_one_line_of_every_command_and_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert all(f"{name:<8}  {summary}" in lines for name, summary in COMMANDS.items())
    assert "`python -m backend COMMAND --help` shows the options of one." in lines


@pytest.mark.parametrize("argv", [["quantzie", "demo"], ["--json", "quantize"], ["--", "quantize"]])
def test_what_is_no_command_is_refused_with_their_names(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2
    assert "usage: python -m backend" in capsys.readouterr().err


def test_the_module_of_every_command_is_named_in_the_table_and_none_else():
    modules = {path.stem for path in (ROOT / "backend" / "cli").glob("*.py")}
    assert modules - COMMANDS.keys() == {"__init__", "command", "names", "recipe", "words"}
    assert all(issubclass(import_module(f"backend.cli.{name}").COMMAND, Command) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_its_line_and_names_no_type_of_python(name, capsys):
    text = help_of(capsys, name)
    assert COMMANDS[name] in text
    assert not [word for word in ("tuple[", "pathlib", "Path ", " str ", "None", "Undefined") if word in text]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["quantize"], "--bits {2,3,4,5,6,7,8} Bits a weight"),
        (["quantize"], "--group-size {-1,32,64,128} Inputs that share a scale"),
        (["quantize"], "--llm-int8-skip-modules TEXT,… Linear layers that"),
        (["estimate"], "--bits {2,3,4,5,6,7,8} Bits a weight"),
        (["finetune"], "-r N Rank of the adapter"),
        (["finetune"], "--target-modules TEXT,… Layers that get an adapter"),
        (["merge"], "--adapter-weights X,… How much"),
        (["merge"], "--merge-into {auto,original,nf4,fp4} What the adapter"),
        (["serve"], "--port N The port"),
    ],
)
def test_the_help_shows_what_a_value_may_be(argv, words, capsys):
    assert words in help_of(capsys, *argv)


class Wide(Frozen):
    """Options of one method."""

    width: Literal[1, 2] = Field(2, description="How wide.")
    share: float = Field(0.5, description="100% is all.")


class Narrow(Frozen):
    """Options of another."""

    width: Literal[-1, 2] = Field(2, description="How wide.")
    names: tuple[str, ...] = Field(("a", "b"), description="Which.")
    keep: bool = Field(True, description="Keep it.")


class _Paint(Command):
    walls: Argument[list[Path]] = Field(description="What is painted.")
    k: int | None = Field(None, description="A letter.")

    def run(self):
        self.say(self.model_dump(), "painted")


PAINT = with_options(_Paint, {"wide": Wide, "narrow": Narrow})


def paint(*argv):
    return read(PAINT, argv, "paint", "Paint walls.")


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ([], {}),
        (["--width", "-1"], {"width": -1}),
        (["--width", "7"], {"width": 7}),  # the option model says that it will not do
        (["--names", "c,d", "--names", "e"], {"names": ("c", "d", "e")}),
        (["--names", '"c,d",e'], {"names": ("c,d", "e")}),
        (["--names", '["c,d", "e"]'], {"names": ("c,d", "e")}),
        (["--names", "[INST]"], {"names": ("[INST]",)}),
        (["--names", ""], {"names": ()}),
        (["--names", "\n"], {"names": ("\n",)}),
        (["--names", "a\nb"], {"names": ("a\nb",)}),
        (["--names", '"a\nb",c'], {"names": ("a\nb", "c")}),
        (["--no-keep"], {"keep": False}),
    ],
)
def test_only_what_was_typed_is_given(typed, given):
    command = paint("north", "a,b", *typed)
    assert command.walls == [Path("north"), Path("a,b")]
    assert command.given(Wide, Narrow) == given


def test_a_line_break_between_commas_is_a_usage_fault(capsys):
    with pytest.raises(SystemExit):
        paint("north", "--names", "a\n,b")
    assert "a line break stands between commas" in capsys.readouterr().err


def test_a_flag_of_one_letter_has_one_dash_and_none_can_be_cut_short(capsys):
    assert paint("north", "-k", "3").k == 3
    with pytest.raises(SystemExit):
        paint("north", "--wid", "2")
    assert "--wid" in capsys.readouterr().err


def test_a_flag_of_several_methods_shows_the_choices_of_all(capsys):
    with pytest.raises(SystemExit):
        paint("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--width {1,2,-1} How wide. [wide] [narrow] (default: 2)" in shown
    assert "100% is all. [wide] (default: 0.5)" in shown
    assert "--names TEXT,… Which. [narrow] (default: a,b)" in shown
    assert "--keep, --no-keep Keep it. [narrow] (default: yes)" in shown


HEAVY = {
    "torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "numba", "pyarrow", "gradio", "fastapi",
    "starlette", "uvicorn", "openai", "httpx", "httpx2", "huggingface_hub", "jinja2", "PIL", "asyncio",
}  # fmt: skip
WITHOUT_ARRAYS = ("chat", "compare", "serve", "deploy")  # commands that take no recipe
WAYS = {
    "quantize": ["demo", "--method", "nf4", "--output", "out"],
    "finetune": ["demo", "--output", "out"],
    "preview": ["demo"],
    "merge": ["adapter", "--output", "out"],
    "evaluate": ["out", "--reference", "demo"],
    "check": ["out"],
    "chat": ["out", "--prompt", "Hello"],
    "compare": ["out", "demo", "--prompt", "Hello"],
    "serve": ["out"],
    "publish": ["out", "--to-folder", "published"],
    "deploy": ["me/space"],
    "estimate": ["demo", "--method", "nf4"],
    "run": ["recipe.yaml"],
}
LOADED = """
import sys
from importlib import import_module
from backend.cli import COMMANDS, main
name, *typed = sys.argv[1:]
if not typed:
    try:
        main([name])
    except SystemExit:
        pass
else:
    from backend.cli.command import read
    read(import_module(f"backend.cli.{name}").COMMAND, typed, name, COMMANDS[name])
print("|", *sorted({module.split(".")[0] for module in sys.modules}))
"""


def loaded(*argv):
    """Return the packages that a fresh process has imported after it has read a command."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *argv], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.rpartition("|")[2].split())


def test_the_list_of_commands_is_shown_without_pydantic_and_all_that_comes_with_it():
    assert not loaded("--help") & (HEAVY | {"pydantic", "numpy", "yaml", "sqlite3", "ctypes"})


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_read_without_what_its_work_may_not_need(name):
    absent = HEAVY | ({"numpy", "sqlite3"} if name in WITHOUT_ARRAYS else set())
    assert not loaded(name, *WAYS[name]) & absent


WORKED = """
import sys
from backend.cli import main
code = main(sys.argv[1:])
print("|", *sorted({module.split(".")[0] for module in sys.modules}))
sys.exit(code)
"""


def test_what_lies_on_this_machine_is_quantized_without_the_hubs_library(tiny_model, tmp_path):
    argv = ["quantize", str(tiny_model), "--method", "nf4", "--output", str(tmp_path / "nf4")]
    env = os.environ | {"WEIGHTSMITH_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-c", WORKED, *argv]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=120)
    assert (tmp_path / "nf4" / "artifact.json").is_file()
    assert not set(done.stdout.rpartition("|")[2].split()) & HEAVY
