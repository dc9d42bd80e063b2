"""The recipes for the models that many begin with, on models of these shapes: from a Hub to a published folder."""

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact
from backend.recipes import parse_yaml
from tests.support import seed_models
from tests.support.loopback_hub import LoopbackHub

RECIPES = Path(__file__).parents[2] / "templates" / "recipes"
SMALL = {"max_steps": 2, "max_length": 128, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "r": 4}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def guanaco() -> dict[str, bytes | str]:
    turns = "### Human: What is {0} and {0}?### Assistant: It is {1}.### Human: Are you sure?### Assistant: Yes, {1}."
    rows = lines([{"text": turns.format(i, 2 * i)} for i in range(40)])
    card = "---\nlicense: apache-2.0\n---\n# Guanaco\n"
    return {"openassistant_best_replies_train.jsonl": rows, "openassistant_best_replies_eval.jsonl": rows[:900],
            "README.md": card}  # fmt: skip


def dialogsum() -> dict[str, bytes | str]:
    head, row = (
        "id,dialogue,summary,topic\n",
        '{0}_{1},"#Person1#: Hi, {1} of {0}!\n#Person2#: Hello.","{1} is greeted.",hello\n',
    )
    found = {
        split: head + "".join(row.format(split, i) for i in range(30)) for split in ("train", "validation", "test")
    }
    return {f"{split}.csv": text for split, text in found.items()} | {
        "README.md": "---\nlicense: cc-by-nc-sa-4.0\n---\n"
    }


def c4() -> dict[str, bytes | str]:
    text = "The quick brown fox jumps over the lazy dog number {}; it was the best of times, and the worst of them. "
    parts = [lines([{"text": text.format(i) * 30, "timestamp": "2019", "url": "x"} for i in range(40)])] * 3
    files: dict[str, bytes | str] = {
        f"en/c4-train.{i:05d}-of-01024.json.gz": gzip.compress(part.encode()) for i, part in enumerate(parts)
    }
    files |= {name.replace("train", "validation").replace("01024", "00008"): data for name, data in files.items()}
    files |= {name.replace("en/", "realnewslike/"): data for name, data in files.items()}
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/c4-train.*.json.gz\n"
        for name in ("en", "realnewslike")
    )
    return files | {"README.md": f"---\nlicense: odc-by\nconfigs:\n{configs}---\n# C4\n"}


def python_instructions() -> dict[str, bytes | str]:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"instruction": f"Write a function that adds {i}.", "input": "" if i % 2 else f"x = {i}",
         "output": f"def add(x):\n    return x + {i}\n", "prompt": "Below is an instruction …"}
        for i in range(40)
    ]  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return {"data/train-00000-of-00001-8b6e212f3e1ece96.parquet": sink.getvalue(), "README.md": "# Rows\n"}


Files = Mapping[str, bytes | str]
SEEDS: dict[str, tuple[str, Callable[[Path, Path], Path], str, Callable[[], Files], dict[str, Any]]] = {
    "phi-3-mini-guanaco": (
        "microsoft/Phi-3-mini-4k-instruct", seed_models.phi_3, "timdettmers/openassistant-guanaco", guanaco, SMALL,
    ),
    "phi-2-dialogsum": (
        "microsoft/phi-2", seed_models.phi_2, "knkarthick/dialogsum", dialogsum,
        SMALL | {"validation_split": "validation[:4]"},
    ),
    "opt-125m-gptq-c4": (
        "facebook/opt-125m", seed_models.opt, "allenai/c4", c4,
        {
            "calibration": {"dataset": "allenai/c4", "config": "en", "split": "train[:30]", "text_column": "text"},
            "num_calibration_samples": 8,
            "max_seq_length": 128,
        },
    ),
    "llama-2-7b-python": (
        "meta-llama/Llama-2-7b-hf", seed_models.llama_2, "iamtarun/python_code_instructions_18k_alpaca",
        python_instructions, SMALL,
    ),
}  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_goes_from_a_hub_to_a_published_folder(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    model, make, dataset, rows, smaller = SEEDS[name]
    hub.add_model(model, make(tmp_path / "model", tmp_path / "canary"))
    hub.add_dataset(dataset, rows())
    recipe = parse_yaml((RECIPES / f"{name}.yaml").read_text())
    recipe["stages"][0] |= smaller
    recipe["publish"] = {"to_folder": "published", "insist": True}  # test_check.py starts the servers of a check
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "made")]) == 0
    made, published = open_artifact(tmp_path / "made"), open_artifact(tmp_path / "published")
    assert made.base_model == published.base_model == model
    assert not [name for name in published.files if name.endswith((".py", ".bin", ".h5", ".msgpack"))]
    assert not (tmp_path / "canary").exists()
    for text in (*tmp_path.glob("model/LICENSE*"), *tmp_path.glob("model/NOTICE*")):
        assert (tmp_path / "published" / text.name).read_bytes() == text.read_bytes()
    card = (tmp_path / "published" / "README.md").read_text()
    assert f"base_model: {model}" in card
    assert dataset in card
    [kept] = [path for path in (tmp_path / "data" / "models").glob("*/*") if path.is_dir()]
    assert not [path for path in kept.iterdir() if path.suffix in (".py", ".bin")]
    assert "auto_map" not in (kept / "config.json").read_text()
    asked = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert not [path for path in asked if path.endswith((".py", ".h5", ".msgpack"))]
    assert len([path for path in asked if "/c4-" in path]) == (name == "opt-125m-gptq-c4")
    if made.kind == "quantized":
        for file in ("vocab.json", "merges.txt"):
            assert (tmp_path / "published" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()
        assert made.calibration
        assert "8 windows" in made.calibration
