"""QLoRA: a frozen base model in 4 bit, an adapter that learns (arXiv 2305.14314), with PEFT and TRL's SFTTrainer.

On a CPU the base is held as 4 bits have left it, unpacked: the same numbers as bitsandbytes would unpack at every step,
for four times the memory and a fraction of the time.
"""

import os
from collections.abc import Sequence
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from backend.artifacts.artifact import CHECKPOINTS, LOGS
from backend.artifacts.training_log import STOP
from backend.errors import HardwareError, JobError, SpecError
from backend.executors.contract import Machine
from backend.finetune import costs
from backend.finetune.checkpoints import newest_sealed, read_losses, step_of
from backend.finetune.layers import parameters, targets
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendering import Rendered
from backend.finetune.side_by_side import fits_side_by_side
from backend.finetune.suited import lacking, suited
from backend.machine.hardware import gpu_bytes, memory_bytes
from backend.model_folder import read_config
from backend.models.config import context_length, embedded
from backend.models.facts import ModelFacts
from backend.models.inspection import inspect
from backend.models.loading import changes, check_embedded, device, in_our_words, load_causal_lm, pad_within
from backend.processes.ranks import rank, world_size
from backend.progress import Report
from backend.quantize import METHODS
from backend.weights.codes import CODES

EVALUATIONS = 10
"""Validations in a whole training where nobody says how many."""

ANSWER_TOKENS = 60


class Rows(NamedTuple):
    """What is trained on and measured on."""

    train: Sequence[Rendered]
    validation: Sequence[Rendered]
    prompts: Sequence[tuple[str, list[int]]]  # questions whose answers are shown, and their tokens

    @property
    def sizes(self) -> costs.RowSizes:
        """How long the rows are that are trained on."""
        lengths = [len(row.input_ids) for row in self.train]
        return costs.RowSizes(len(lengths), sum(lengths), max(lengths))


class Outcome(NamedTuple):
    """How a training ended."""

    steps: int
    planned_steps: int
    train_loss: float  # mean over the steps, nats a token
    eval_loss_before: float | None  # on the validation rows
    eval_loss: float | None
    stopped: str | None  # why it ended early


def finetune(base: Path, rows: Rows, tokenizer: Any, output: Path, options: FinetuneOptions, report: Report) -> Outcome:
    """Train an adapter and write it as PEFT does.

    Several processes may call this together, as torch.distributed has it: the first writes and reports.

    Args:
        base: The model's folder, admitted, with its tokenizer.
        rows: Rendered; those without a token that counts must be gone.
        tokenizer: That they were rendered with.
        output: An existing folder, where checkpoints of an earlier run may lie; the adapter is written here.
        options: How.
        report: Receives steps and figures.

    Raises:
        SpecError: There is nothing to learn.
        HardwareError: The memory does not do; what would fit.
        JobError: The loss was no number, and no checkpoint was sealed before.
    """
    if not rows.train:
        raise SpecError("No row is left to learn from: see what was dropped, and why.")
    read = embedded(read_config(base))
    largest = max(max(row.input_ids, default=0) for row in (*rows.train, *rows.validation))
    check_embedded(tokenizer, largest, read, base.name)
    pad_within(tokenizer, read or len(tokenizer))
    facts = inspect(str(base.resolve()))
    options, lines = suited(options, facts)
    for line in lines:
        report.log(line)
    try:
        model = _load(base, facts, options, report)
        layers = targets(model, facts, options.target_modules)
        if not layers:
            raise SpecError(f"'{base.name}' has no layer that an adapter could be trained for: choose another model.")
        chosen = options.model_copy(update={"target_modules": tuple(layers)})
        with in_our_words(f"The training of '{base.name}'", "try quantization none, or choose another model"):
            return _train(model, tokenizer, rows, output, chosen, report)
    except HardwareError as e:
        raise out_of_memory(base, options, rows.sizes) from e


def out_of_memory(base: Path, options: FinetuneOptions, sizes: costs.RowSizes) -> HardwareError:
    """Say that the memory did not do, and which settings would fit into it.

    Args:
        base: The model's folder.
        options: That did not fit.
        sizes: Of the rows.
    """
    facts, machine = inspect(str(base.resolve())), Machine(memory_bytes(), gpu_bytes(), world_size())
    cost = costs.training_cost(facts, options, sizes, machine)
    room = min(machine.room, cost.needed * 4 // 5)  # what was estimated did not do
    return HardwareError(
        f"The training ran out of memory: {costs.way_out(facts, options, sizes, machine, room)}. It was estimated to"
        f" need {cost.needed / 1e9:.1f} GB, and there are {machine.room / 1e9:.1f} GB."
    )


def _load(base: Path, facts: ModelFacts, options: FinetuneOptions, report: Report) -> Any:
    """Load the base model, frozen."""
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, compute_dtype(options))
    kwargs: dict[str, Any] = {"dtype": dtype, "attn_implementation": _attention(facts, options)}
    if options.quantization != "none":
        settings = METHODS[options.quantization].Options().config(facts.tensors, facts.config)["quantization_config"]
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=options.quantization in CODES,
            load_in_8bit=options.quantization == "int8",
            bnb_4bit_quant_type=settings["bnb_4bit_quant_type"],
            bnb_4bit_use_double_quant=options.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=settings["llm_int8_skip_modules"],  # as where the model is quantized so
        )
    model = load_causal_lm(base, report, **kwargs)
    model.config.use_cache = False
    if options.quantization in CODES and device() == "cpu" and costs.unpacks(facts.parameters, memory_bytes()):
        _unpack(model, dtype)
        report.log("The 4-bit weights are held unpacked: the same numbers, faster on a CPU.")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _unpack(model: Any, dtype: Any) -> None:
    """Replace 4-bit layers by ordinary ones with the weights that bitsandbytes would compute with."""
    import bitsandbytes as bnb
    from torch import nn

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, bnb.nn.Linear4bit):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
                state = copy(layer.weight.quant_state)
                state.shape = (plain.weight.numel(),)  # bitsandbytes' kernel for CPUs takes rows for whole blocks
                weight = bnb.functional.dequantize_4bit(layer.weight.data, state)
                weight = weight.to(dtype).reshape(plain.weight.shape)
                plain.weight = nn.Parameter(weight, requires_grad=False)
                if layer.bias is not None:
                    plain.bias = nn.Parameter(layer.bias.data, requires_grad=False)
                setattr(parent, name, plain)
    model.is_loaded_in_4bit = model.is_quantized = False
    model.hf_quantizer = None
    del model.config.quantization_config


def compute_dtype(options: FinetuneOptions) -> str:
    """Return torch's name of the type of the arithmetic: bfloat16 wherever the hardware has it."""
    import torch

    if options.bnb_4bit_compute_dtype != "auto":
        return options.bnb_4bit_compute_dtype
    return "bfloat16" if device() == "cpu" or torch.cuda.is_bf16_supported() else "float16"


def _attention(facts: ModelFacts, options: FinetuneOptions) -> str | None:
    """Return what attention is computed with; None: what transformers chooses, since not every model has all."""
    if options.attn_implementation != "auto":
        return options.attn_implementation
    has = device() != "cpu" and find_spec("flash_attn") is not None
    return "flash_attention_2" if has and "flash_attn" not in lacking(facts) else None


def _train(model: Any, tokenizer: Any, rows: Rows, output: Path, options: FinetuneOptions, report: Report) -> Outcome:
    from datasets import Dataset
    from peft import LoraConfig

    from backend.finetune.sft_trainer import Tuner, Watch  # noqa: PLC0415 - imports trl

    os.environ |= {name: str(output / LOGS) for name in ("TENSORBOARD_LOGGING_DIR", "TRACKIO_DIR")}
    side_by_side = fits_side_by_side(model, rows.train, options, report)
    watch = Watch(report, output, output.parent.parent / STOP, lambda: _answers(tuner.model, tokenizer, rows.prompts))
    tuner = Tuner(
        model=model,
        args=_arguments(options, rows, output, side_by_side, report),
        train_dataset=Dataset.from_list([_columns(row) for row in rows.train]),
        eval_dataset=Dataset.from_list([_columns(row) for row in rows.validation]) if rows.validation else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(**lora(options, model)),
        callbacks=[watch, *_early(options, rows)],
    )
    watch.watch(tuner)
    resumed = newest_sealed(output / CHECKPOINTS)
    if resumed:
        report.log(f"Going on after step {step_of(resumed)}.")
        tuner.losses = read_losses(resumed)
    before = tuner.losses
    # Not with evaluate(): a model that was measured first is never wrapped, and each process would learn for itself.
    tuner.args.eval_on_start = bool(rows.validation) and resumed is None
    done = tuner.train(resume_from_checkpoint=str(resumed) if resumed else None)
    stopped = _why_early(tuner, watch.stopped, output, options, report)
    first = next((float(line["eval_loss"]) for line in tuner.state.log_history if "eval_loss" in line), None)
    last = float(tuner.evaluate()["eval_loss"]) if rows.validation else None
    if rank() == 0:
        tuner.model.save_pretrained(output)
    tuner.accelerator.wait_for_everyone()
    tuner.accelerator.end_training()  # leaves the other processes in order, before any of them is gone
    state = tuner.state
    loss = _mean_loss(float(done.training_loss), before, step_of(resumed) if resumed else 0, state.global_step)
    return Outcome(state.global_step, state.max_steps, loss, first, last, stopped)


def _why_early(tuner: Any, asked: bool, output: Path, options: FinetuneOptions, report: Report) -> str | None:
    """Say why a training has ended before its last step; None where it has not.

    Raises:
        JobError: Nothing was learned.
    """
    from backend.finetune.sft_trainer import MAX_NOT_FINITE  # noqa: PLC0415 - imports trl

    why = "Stopped by its user." if asked else None
    if tuner.not_finite >= MAX_NOT_FINITE:
        why = _back_to_the_last_good(tuner, output)
        report.warn(why)
    elif why is None and tuner.state.global_step < tuner.state.max_steps:
        why = f"The validation loss got no better {options.early_stopping_patience} times in a row."
    if not changes(tuner.model):
        if why is None:
            raise JobError("Nothing was learned: the model says the same without the adapter. Raise the learning rate.")
        report.warn("Nothing was learned until then: the model says the same without the adapter.")
    return why


def _mean_loss(here: float, before: float | None, resumed: int, steps: int) -> float:
    """Return the mean loss over all steps.

    Args:
        here: Mean over the steps of this run, which may be none.
        before: Sum over the steps of earlier ones; None where it was not kept.
        resumed: The step after which this run began.
        steps: The last step.
    """
    if before is None or not steps:
        return here
    return (before + here * (steps - resumed)) / steps


def lora(options: FinetuneOptions, model: Any) -> dict[str, Any]:
    """Return the arguments of PEFT's LoraConfig."""
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": list(options.target_modules),
        "target_parameters": parameters(model) if options.target_parameters == "experts" else None,
        **{name: getattr(options, name) for name in
           ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora")},
    }  # fmt: skip


def _arguments(options: FinetuneOptions, rows: Rows, output: Path, side_by_side: bool, report: Report) -> Any:
    """Return TRL's arguments."""
    from transformers.utils import is_torch_tf32_available
    from trl.trainer.sft_config import SFTConfig

    steps = costs.steps_of(options, len(rows.train), world_size())
    every = options.eval_steps or max(1, steps // EVALUATIONS)
    save = options.save_steps or every
    best = bool(rows.validation) and options.load_best_model_at_end
    if best and save % every:  # transformers takes the best from checkpoints that were measured
        best = False
        report.warn(
            f"The last checkpoint is kept, not the best: checkpoints are written every {save} steps and measured every"
            f" {every}. Give a save_steps that is a multiple of eval_steps to keep the best."
        )
    dtype, on_cpu = compute_dtype(options), device() == "cpu"
    optim = {True: "adamw_torch", False: "paged_adamw_8bit"}[on_cpu] if options.optim == "auto" else options.optim
    same = ("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "num_train_epochs",
            "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "neftune_noise_alpha", "seed")  # fmt: skip
    arguments = SFTConfig(
        output_dir=str(output / CHECKPOINTS),
        **{name: getattr(options, name) for name in same},
        max_steps=-1 if options.max_steps < 0 else steps,  # TRL would begin more epochs than were asked for
        warmup_steps=round(steps * options.warmup_ratio),
        optim=optim,
        use_cpu=on_cpu,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        gradient_checkpointing={"on": True, "off": False, "auto": not on_cpu}[options.gradient_checkpointing],
        router_aux_loss_coef=0.0,  # routers stay as they are: there is nothing to balance
        packing=options.packing and side_by_side,
        padding_free=side_by_side,
        max_length=options.max_length if options.packing and side_by_side else None,
        dataset_kwargs={"skip_prepare_dataset": not (options.packing and side_by_side)},
        eval_strategy="steps" if rows.validation else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=save,
        save_total_limit=None,  # backend.finetune.checkpoints removes old ones, and never one before the next is sealed
        load_best_model_at_end=best,
        logging_steps=max(1, min(10, steps // 50)),
        logging_nan_inf_filter=False,
        tf32={"on": True, "off": False, "auto": is_torch_tf32_available() or None}[options.tf32],
        report_to=options.report_to,
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else one process would spread each batch over all GPUs
    return arguments


def _columns(row: Rendered) -> dict[str, list[int]]:
    return {"input_ids": row.input_ids, "labels": row.labels}


def _early(options: FinetuneOptions, rows: Rows) -> list[Any]:
    from transformers import EarlyStoppingCallback

    patience = options.early_stopping_patience
    return [EarlyStoppingCallback(patience)] if patience and rows.validation else []


def _answers(model: Any, tokenizer: Any, prompts: Sequence[tuple[str, list[int]]]) -> list[tuple[str, str]]:
    """Return questions and the model's most likely answers to them."""
    import torch

    found = []
    was_training, limit = model.training, context_length(model.config.to_dict())
    model.eval()
    with torch.inference_mode():
        for question, prompt in prompts:
            most = min(ANSWER_TOKENS, limit - len(prompt)) if limit else ANSWER_TOKENS
            if most < 1:
                continue  # the question alone is longer than what the model reads
            ids = torch.tensor([prompt], device=model.device)
            mask = torch.ones_like(ids)
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
            found.append((question, tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)))
    model.train(was_training)
    return found


def _back_to_the_last_good(tuner: Any, output: Path) -> str:
    """Load the newest sealed checkpoint after the loss has become no number, and say so.

    Raises:
        JobError: There is none.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    good = newest_sealed(output / CHECKPOINTS)
    step, why = tuner.state.global_step, "lower the learning rate, or look at the rows"
    if good is None:
        raise JobError(f"The loss was no number any more at step {step}, before anything was learned: {why}.")
    set_peft_model_state_dict(tuner.model, load_file(good / "adapter_model.safetensors"))
    tuner.not_finite = 0
    return (
        f"The loss was no number any more at step {step}: what was learned until step {step_of(good)} is kept. To go"
        f" further, {why}."
    )
