"""`transformers serve` behind the door: run as `python -m backend.serve.transformers_server FOLDER PORT DEVICE`."""

import os
import sys
from pathlib import Path
from typing import Any

from backend.serve.door import Door


def main() -> None:
    """Load the model, then answer until SIGTERM."""
    from transformers.cli.serve import Serve
    from transformers.cli.serving.chat_completion import ChatCompletionHandler

    folder, port, device = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # transformers reads an "@" in a model's name as a revision; from its parent, the folder's bare name will do.
    os.chdir(folder.parent)

    build = ChatCompletionHandler._build_generation_config

    def with_top_k(self: Any, body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take top_k as vLLM does; OpenAI's API has none."""
        config = build(self, body, *args, **kwargs)
        config.top_k = body.get("top_k") or config.top_k
        return config

    ChatCompletionHandler._build_generation_config = with_top_k
    ChatCompletionHandler._valid_params_class.__mutable_keys__ |= {"top_k"}

    class KeyedServe(Serve):  # type: ignore[misc]
        def start_server(self) -> None:
            self.server.config.app = Door(self.server.config.app)
            self.server.run()

    KeyedServe(force_model=folder.name, host="127.0.0.1", port=port, device=device, non_blocking=True)


if __name__ == "__main__":
    main()
