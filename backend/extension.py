"""The extension of Hugging Face's command line, `hf weightsmith publish DIR`, with what publishing needs alone.

`hf extensions install` makes it an environment of its own from pyproject.toml. Everything else wants the studio.
"""

import os
import sys
from pathlib import Path

from pydantic_settings import CliSubCommand, SettingsConfigDict

from backend.__main__ import Commands, main
from backend.commands import Publish


class ExtensionCommands(Commands):
    """Publish a model with its card: to the Hub in one commit, or to a folder."""

    model_config = SettingsConfigDict(cli_prog_name="hf weightsmith")

    publish: CliSubCommand[Publish]


def run() -> int:
    """Run what was typed; jobs lie in the user's cache unless WEIGHTSMITH_DATA says otherwise."""
    os.environ.setdefault("WEIGHTSMITH_DATA", str(Path.home() / ".cache" / "weightsmith"))
    return main(sys.argv[1:], ExtensionCommands)
