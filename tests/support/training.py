"""A training, run as a worker runs it."""

from backend.data.samples import Message, Sample
from backend.finetune.options import FinetuneOptions
from backend.finetune.qlora import Rows, finetune
from backend.finetune.rendering import Renderer, stops_of
from backend.progress import silent

QUICK = {
    "num_train_epochs": 1.0, "per_device_train_batch_size": 2, "max_length": 64, "learning_rate": 5e-3, "r": 4,
    "eval_steps": 2, "save_steps": 2,
}  # fmt: skip


def rows(folder, count=16):
    """Rows that teach one answer to each question."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer, "auto", 64, stops_of(tokenizer, ()))
    made = [
        renderer.render(Sample(i, (Message("user", f"What is {i}?"), Message("assistant", f"It is {i * i}."))))
        for i in range(count)
    ]
    return Rows(made[:-4], made[-4:], [("What?", made[-1].input_ids[:8])]), tokenizer


def train(folder, output, report=None, **given):
    output.mkdir(parents=True, exist_ok=True)
    data, tokenizer = rows(folder)
    options = FinetuneOptions(**QUICK | given)
    return finetune(folder, data, tokenizer, output, options, report or silent())
