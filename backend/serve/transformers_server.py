"""`transformers serve` behind the door: run as `python -m backend.serve.transformers_server FOLDER PORT DEVICE`."""

import os
import sys
from pathlib import Path

from backend.serve.door import Door


def main() -> None:
    """Load the model, then answer until SIGTERM."""
    from transformers.cli.serve import Serve

    folder, port, device = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # transformers reads an "@" in a model's name as a revision; from its parent, the folder's bare name will do.
    os.chdir(folder.parent)

    class KeyedServe(Serve):  # type: ignore[misc]
        def start_server(self) -> None:
            self.server.config.app = Door(self.server.config.app)
            self.server.run()

    KeyedServe(force_model=folder.name, host="127.0.0.1", port=port, device=device, non_blocking=True)


if __name__ == "__main__":
    main()
