"""The extension of Hugging Face's command line, `hf weightsmith publish DIR`, with what publishing needs alone.

`hf extensions install` makes it an environment of its own from pyproject.toml. Everything else wants the studio.
"""

import os
import sys
from pathlib import Path

from backend.cli import COMMANDS, main

ABOUT = "Publish a model with its card: to the Hub in one commit, or to a folder."


def run() -> int:
    """Run what was typed; jobs lie in the user's cache unless WEIGHTSMITH_DATA says otherwise."""
    os.environ.setdefault("WEIGHTSMITH_DATA", str(Path.home() / ".cache" / "weightsmith"))
    return main(sys.argv[1:], {"publish": COMMANDS["publish"]}, "hf weightsmith", ABOUT)
