"""The command line: each command is a module here, imported when it is the one that was asked for."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NoReturn

COMMANDS = {
    "quantize": "Quantize a model, or cast it to another type.",
    "finetune": "Train an adapter on your rows (QLoRA).",
    "preview": "Show rows as a model would see them, before a training.",
    "merge": "Merge LoRA adapters into their base model.",
    "evaluate": "Measure a model against the one that it was made from.",
    "check": "Try a model in the engine that would serve it.",
    "chat": "Ask a model one question.",
    "compare": "Ask several models the same, one after the other.",
    "serve": "Serve a model as an OpenAI-compatible endpoint.",
    "publish": "Publish a folder and its card, to the Hub or to a folder.",
    "deploy": "Make this app a Space of yours, or update one.",
    "estimate": "Say what a recipe would need, before any download.",
    "run": "Run a recipe file.",
}
"""Each command's line of help, by its name, which is its module's."""

ABOUT = "Merge, quantize, measure, chat with and publish models of the Hugging Face Hub."


def main(
    argv: Sequence[str], known: Mapping[str, str] = COMMANDS, prog: str = "python -m backend", about: str = ABOUT
) -> int:
    """Run a command of those known; 0, or 1 with one line on standard error, or 2 for wrong usage, as argparse does."""
    if not argv or argv[0] not in known:
        _list(argv, known, prog, about)
    from backend.cli.command import run  # noqa: PLC0415 - the list of commands needs no pydantic

    name, *typed = argv
    return run(import_module(f"{__name__}.{name}").COMMAND, typed, f"{prog} {name}", known[name])


def _list(argv: Sequence[str], known: Mapping[str, str], prog: str, about: str) -> NoReturn:
    """Print the commands, or refuse what is none of them."""
    parser = ArgumentParser(prog, description=about, epilog=f"`{prog} COMMAND --help` shows the options of one.")
    listed = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in known.items():
        listed.add_parser(name, help=summary, add_help=False)
    parser.parse_args(argv or ["--help"])
    parser.error("give the command first, then its options")
