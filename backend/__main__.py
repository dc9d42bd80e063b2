"""The command line: `python -m backend COMMAND …`, the same option models as the page, from flags or a recipe file."""

import gc
import os
import sys

from backend.cli import main

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # else NumPy's threads spin for 0.1 s once it is imported
    code = main(sys.argv[1:])
    gc.freeze()  # to look for what could be freed takes a process 40 ms at its end
    sys.exit(code)
