"""Our defaults against TRL's plain ones: real tokens a second, memory, and the loss that comes of it, in turn.

`python -m benchmarks.finetune [ROUNDS]` tunes the demo model on the same short chat rows, in a fresh process each, one
contender after the other in each round and a new seed for every round, and writes benchmarks/results/finetune.json.
What is learned from what is the same for both: rows, their order, batch, rank, learning rate, schedule, 4-bit base,
answers alone. All else is each one's own default. Tokens are counted without padding; the loss is that of rows nobody
learned from, by a third program that knows neither contender. It runs on the GPU where there is one.
"""

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import versions
from backend.data.demo import pairs
from backend.data.samples import Message, Sample
from backend.finetune.options import FinetuneOptions
from backend.finetune.qlora import Rows, finetune
from backend.finetune.rendering import Renderer, stops_of
from backend.machine.hardware import hardware
from backend.model_folder import stops_in
from backend.models.demo import demo_folder
from backend.processes.child import ROOT
from backend.progress import silent
from benchmarks.figures import spread, spreads

RESULTS = Path(__file__).parent / "results" / "finetune.json"
CONTENDERS = ("ours", "trl")
ROWS, HELD_OUT = 200, 100
LEARNING = {"learning_rate": 2e-4, "lr_scheduler_type": "linear", "max_grad_norm": 0.3, "num_train_epochs": 1.0,
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}  # fmt: skip
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
WARMUP_RATIO = 0.03


def main() -> None:
    """Run, print and write."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = demo_folder(place, silent())
        before = child("loss", model, None, 0)["loss"]
        for seed in range(rounds):
            for name in CONTENDERS:
                output = place / f"{name}-{seed}"
                sys.stderr.write(f"{output.name}\n")
                found[name].append(child(name, model, output, seed) | child("loss", model, output, seed))
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")),
        "rows": ROWS,
        "rounds": rounds,
        "loss before": before,
        "times the real tokens a second": ratio(found, "tokens_per_second"),
        "loss, ours less TRL's": [
            round(ours["loss"] - peer["loss"], 4) for ours, peer in zip(found["ours"], found["trl"], strict=True)
        ],
        "loss, from seed to seed": {name: spread([run["loss"] for run in found[name]]) for name in CONTENDERS},
        "contenders": {name: spreads(found[name]) for name in CONTENDERS},
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def child(what: str, model: Path, output: Path | None, seed: int) -> dict[str, float]:
    """Do one thing in a fresh process; give its figures, and the seconds that the whole process took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.finetune", what, str(model), str(output or ""), str(seed)]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures | ({} if what == "loss" else {"process_seconds": time.monotonic() - started})


def ours(model: Path, output: Path, seed: int) -> dict[str, float]:
    """Tune with the defaults of FinetuneOptions, through what a job calls."""
    from transformers import AutoTokenizer

    options = FinetuneOptions(**LEARNING | LORA | {"warmup_ratio": WARMUP_RATIO, "seed": seed})
    tokenizer = AutoTokenizer.from_pretrained(model)
    stops = stops_of(tokenizer, stops_in(model))
    renderer = Renderer(tokenizer, options.loss, options.max_length, stops)
    rows = [
        renderer.render(Sample(i, (Message("user", pair.question), Message("assistant", pair.answer))))
        for i, pair in enumerate(islice(pairs(), ROWS))
    ]
    output.mkdir()
    finetune(model, Rows(rows, [], []), tokenizer, output, options, silent())
    last = json.loads((output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {"tokens_per_second": last["tokens_per_second"], "peak_mib": peak_mib()}


def trl(model: Path, output: Path, seed: int) -> dict[str, float]:
    """Tune as TRL's documentation shows QLoRA, with its defaults."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.monotonic() - self.began

    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    place = {"": 0 if torch.cuda.is_available() else "cpu"}
    base = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=quantized, dtype=torch.bfloat16, device_map=place
    )
    steps = -(-ROWS // LEARNING["per_device_train_batch_size"])
    clock = Clock()
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            output_dir=str(output), **LEARNING, seed=seed, warmup_steps=round(steps * WARMUP_RATIO),
            use_cpu=not torch.cuda.is_available(), report_to=[], disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=Dataset.from_list([turns(*pair) for pair in islice(pairs(), ROWS)]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **LORA),
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(output))
    tokens = sum(len(row) for row in trainer.train_dataset["input_ids"])
    return {"tokens_per_second": tokens / clock.seconds, "peak_mib": peak_mib()}


def loss(model: Path, output: Path | None, seed: int) -> dict[str, float]:
    """Return the mean loss of the answers' tokens of rows that nobody learned from, in nats."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=quantized, dtype=torch.bfloat16,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )  # fmt: skip
    tuned = PeftModel.from_pretrained(base, output) if output else base
    tokenizer = AutoTokenizer.from_pretrained(model)
    total, count = 0.0, 0
    with torch.inference_mode():
        for pair in islice(pairs(), ROWS, ROWS + HELD_OUT):
            row = turns(*pair)
            asked = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            begin = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
            text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=tuned.device)
            logits = tuned(input_ids=ids).logits[0, begin - 1 : -1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, begin:], reduction="sum"))
            count += ids.shape[1] - begin
    return {"loss": total / count}


def turns(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """Return a row as TRL's prompt and completion."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def peak_mib() -> float:
    """Return the peak of the GPU's memory where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved() / 2**20)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def ratio(found: dict[str, list[dict[str, float]]], key: str) -> dict[str, float]:
    """Return ours over the peer's, from round to round."""
    each = [ours[key] / peer[key] for ours, peer in zip(found["ours"], found["trl"], strict=True)]
    return spread(each)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        what, model, output, seed = sys.argv[1:]
        run = {"ours": ours, "trl": trl, "loss": loss}[what]
        sys.stdout.write(json.dumps(run(Path(model), Path(output) if output else None, int(seed))) + "\n")  # type: ignore[operator]
    else:
        main()
