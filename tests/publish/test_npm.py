"""What was published, as @huggingface/hub (npm) and a YAML reader of another language see it."""

import hashlib
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.progress import silent
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from backend.weights.header import read_header
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import METRICS as PLAIN

pytestmark = pytest.mark.real

Make = Callable[..., Path]

NODE = Path(__file__).parents[1] / "node"
ME, REPO = "hf_write", "me/Llama-new"
METRICS = PLAIN.model_copy(
    update={"text": 'no: "yes" # 0x10 --- \u2028 @x\n---\nlicense: mit', "convention": "8 windows: of 2048 tokens"}
)
CARD = """---
license: llama3.2
language: ["no", en]
tags: ["on", "2024-01-01", "null", "0x10"]
datasets: [acme/rows]
---
"""


def read(hub: LoopbackHub, repo: str) -> dict[str, Any]:
    command = ["node", "read.mjs", hub.url, repo, ME]
    done = subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_another_client_lists_downloads_and_parses_what_was_pushed(
    hub: LoopbackHub, make_artifact: Make, make_adapter: Make, kind: str
) -> None:
    folder = make_artifact(card=CARD, metrics=METRICS) if kind == "model" else make_adapter()
    publish(folder, PublishOptions(repo_id=REPO), ME, silent())
    pushed, found = hub.files(REPO), read(hub, REPO)

    assert {name: file["sha256"] for name, file in found["files"].items() if name in pushed} == {
        name: hashlib.sha256(data).hexdigest() for name, data in pushed.items()
    }
    assert all(file["listed"] == file["size"] for file in found["files"].values())
    assert (found["info"]["name"], found["info"]["private"]) == (REPO, True)
    assert found["info"]["library_name"] == ("transformers" if kind == "model" else "peft")

    card = pushed["README.md"].decode()
    assert found["front"] == yaml.safe_load(card.split("\n---\n")[0].removeprefix("---"))
    if kind == "model":
        assert found["front"]["language"] == ["no", "en"]
        assert found["front"]["tags"] == ["on", "2024-01-01", "null", "0x10", "weightsmith"]

    [weights] = folder.glob("*.safetensors")
    tensors = read_header(weights).tensors
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in found["header"].items()} == {
        tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in tensors
    }
    assert sum(found["parameters"].values()) == sum(math.prod(tensor.shape) for tensor in tensors)
