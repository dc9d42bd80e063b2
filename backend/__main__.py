"""The command line: `python -m backend COMMAND …`, the same option models as the page, from flags or a recipe file."""

import sys

from backend.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
