"""Seconds a decoder block of an 8 B shape takes: our GPTQ against GPTQModel's, in turn, for a machine with a GPU.

`python -m benchmarks.blocks [ROUNDS] [SHAPE]` makes two models of random weights in the shape of Llama-3.1-8B, of FEW
and MANY blocks, and has each contender quantize both in fresh processes, as benchmarks/calibrated.py does, to 4 bits on
32 windows of 512 tokens. The time of MANY less that of FEW, over the blocks between, is that of a block: starting,
loading, the embeddings and what is done once drop out. Writes benchmarks/results/blocks.json, by machine. The shape
`tiny` tries the script where there is no GPU; its figures say nothing.
"""

import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from backend.artifacts.artifact import versions
from backend.machine.hardware import hardware
from backend.models.demo import demo_folder
from backend.progress import silent
from benchmarks.calibrated import CONTENDERS, WINDOWS, make, peers, prepare, write_rows
from benchmarks.figures import spreads

RESULTS = Path(__file__).parent / "results" / "blocks.json"
FEW, MANY = 2, 6
SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2},
}

MEASURED = {
    "ours": CONTENDERS["gptq-4: ours"],
    "GPTQModel": CONTENDERS["gptq-4: GPTQModel"],
}


def main() -> None:
    """Run, print and write."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    shape = sys.argv[2] if len(sys.argv) > 2 else "8b"
    prepare("gptqmodel")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURED}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        demo = demo_folder(place, silent())
        write_rows(demo, place, WINDOWS)
        models = {blocks: random_model(demo, place / f"{shape}-{blocks}", shape, blocks) for blocks in (FEW, MANY)}
        for round_ in range(rounds):
            for name, command in MEASURED.items():
                sys.stderr.write(f"{round_ + 1}/{rounds} {name}\n")
                found[name].append(block(command, models, place, f"{name}-{round_}"))
                sys.stderr.write(f"{found[name][-1]}\n")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known[f"{hardware()}, {shape}"] = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(("torch", "transformers", "numpy", "numba")) | peers(),
        "rounds": rounds,
        "contenders": {name: spreads(runs) for name, runs in found.items()},
    }
    RESULTS.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def block(command: list[str], models: dict[int, Path], place: Path, run: str) -> dict[str, float]:
    """Have a contender quantize both models; give a block's seconds, and the memory for the larger model."""
    few, many = (make(command, models[blocks], place, place / f"{run}-{blocks}") for blocks in (FEW, MANY))
    return {"seconds a block": (many["seconds"] - few["seconds"]) / (MANY - FEW), "rss_mib": many["rss_mib"]}


def random_model(demo: Path, folder: Path, shape: str, blocks: int) -> Path:
    """Write a Llama of so many blocks with random weights and the demo model's tokenizer, whose rows it reads."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(demo)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], num_hidden_layers=blocks, vocab_size=len(tokenizer), tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


if __name__ == "__main__":
    main()
