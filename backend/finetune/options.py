"""FinetuneOptions: what QLoRA can be told, in the words of PEFT, TRL and bitsandbytes; presets fill it."""

from importlib.util import find_spec
from typing import Literal

from pydantic import Field, model_validator

from backend.data.options import DatasetOptions
from backend.errors import SpecError
from backend.finetune.layers import ALL_LINEAR, adaptable, has_experts
from backend.machine.hardware import gpus
from backend.models.facts import ModelFacts
from backend.models.families import traits
from backend.options import ADVANCED, Switch
from backend.stage import Stage

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr"]


class FinetuneOptions(DatasetOptions, Stage):
    """What is learned from, and how.

    Defaults are the QLoRA paper's (arXiv 2305.14314) where it gives one, else TRL's; a comment says where not.
    """

    NAMES = ("dataset", "validation_dataset")
    makes = "adapter"
    gpu = True

    stage: Literal["finetune"] = "finetune"

    chat_template: Literal["auto", "plain", "alpaca", "zephyr", "chatml"] = Field(
        "auto",
        description="How conversations become text. auto: the model's own; a base model that has none needs one.",
        json_schema_extra=ADVANCED,
    )
    quantization: Literal["nf4", "fp4", "int8", "none"] = Field(
        "nf4",
        description="How the frozen base model is held. nf4: a quarter of the memory, the QLoRA standard; none: 16 bit,"
        " most exact.",
    )
    bnb_4bit_use_double_quant: bool = Field(
        True,
        description="Quantize the scales of a 4-bit base too: saves 0.37 bit a parameter.",
        json_schema_extra=ADVANCED,
    )
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="The type of the arithmetic. auto: bfloat16 where the hardware has it.",
        json_schema_extra=ADVANCED,
    )

    r: int = Field(16, ge=1, le=512, description="Rank of the adapter: more learns more, and takes more memory.")
    lora_alpha: int = Field(32, ge=1, le=4096, description="Scale of the adapter; twice the rank is usual.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Guards against learning few rows by heart.")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="Which biases are trained too.", json_schema_extra=ADVANCED
    )
    target_modules: tuple[str, ...] = Field(
        ALL_LINEAR,
        min_length=1,
        description="Layers that get an adapter: all-linear, or names that the model has, such as q_proj. The experts"
        " of a mixture are no layers: see target_parameters.",
        json_schema_extra=ADVANCED,
    )
    target_parameters: Literal["none", "experts"] = Field(
        "none",
        description="What gets an adapter beside layers. experts: all experts of a mixture, which learn more, and take"
        " many times the memory.",
        json_schema_extra=ADVANCED,
    )
    use_rslora: bool = Field(
        False, description="Scale by the root of the rank, better for high ranks.", json_schema_extra=ADVANCED
    )
    use_dora: bool = Field(
        False,
        description="Train magnitude and direction apart: often better at low rank, slower.",
        json_schema_extra=ADVANCED,
    )

    learning_rate: float = Field(2e-4, gt=0, le=1, description="How fast it learns. 2e-4 suits adapters.")
    lr_scheduler_type: Scheduler = Field(
        "linear", description="How the learning rate falls towards the end.", json_schema_extra=ADVANCED
    )
    warmup_ratio: float = Field(
        0.03,
        ge=0,
        le=0.5,
        description="Share of the steps over which the learning rate rises.",
        json_schema_extra=ADVANCED,
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Pulls weights to zero.", json_schema_extra=ADVANCED)
    max_grad_norm: float = Field(
        0.3, gt=0, le=100, description="Longer gradients are shortened to this.", json_schema_extra=ADVANCED
    )
    num_train_epochs: float = Field(3.0, gt=0, le=1000, description="How often each row is seen.")
    max_steps: int = Field(-1, ge=-1, le=10_000_000, description="Steps at most; -1: as many as the epochs take.")
    per_device_train_batch_size: int = Field(8, ge=1, le=1024, description="Rows at once: faster, with more memory.")
    per_device_eval_batch_size: int = Field(
        8, ge=1, le=1024, description="Rows at once while validating.", json_schema_extra=ADVANCED
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=4096, description="Batches that one step learns from together.", json_schema_extra=ADVANCED
    )
    max_length: int = Field(
        1024, ge=16, le=1_000_000, description="Tokens of a row at most; longer ones are cut, and counted."
    )
    packing: bool = Field(
        False,
        description="Fill sequences of max_length with several short rows, each seeing itself alone: fewer, larger"
        " steps. Off where the model's attention would see across rows.",
        json_schema_extra=ADVANCED,
    )
    loss: Literal["auto", "assistant", "completion", "all"] = Field(
        "auto",
        description="Which tokens are learned. auto: answers alone; of plain text, all.",
        json_schema_extra=ADVANCED,
    )
    gradient_checkpointing: Switch = Field(
        "auto",
        description="Compute layers twice to save memory. auto: on a GPU, not on a CPU.",
        json_schema_extra=ADVANCED,
    )
    optim: Literal["auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit", "adamw_8bit", "sgd"] = Field(
        "auto", description="auto: paged_adamw_8bit on a GPU, adamw_torch on a CPU.", json_schema_extra=ADVANCED
    )
    tf32: Switch = Field(
        "auto",
        description="Multiply what is in float32 with 10 bits less: faster on a GPU. auto: where the hardware has it.",
        json_schema_extra=ADVANCED,
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="auto: flash attention where it is installed, else sdpa.", json_schema_extra=ADVANCED
    )
    neftune_noise_alpha: float | None = Field(
        None, gt=0, le=100, description="Noise on the embeddings (NEFTune); 5 is usual.", json_schema_extra=ADVANCED
    )
    seed: int = Field(42, ge=0, le=2**31, description="The same seed and data give the same adapter.")

    eval_steps: int | None = Field(
        None, ge=1, description="Validate after so many steps; by default ten times in all.", json_schema_extra=ADVANCED
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Stop after so many validations without a better loss.",
        json_schema_extra=ADVANCED,
    )
    load_best_model_at_end: bool = Field(
        True, description="Keep the checkpoint with the lowest validation loss.", json_schema_extra=ADVANCED
    )
    save_steps: int | None = Field(
        None,
        ge=1,
        description="Checkpoint after so many steps; by default with each validation.",
        json_schema_extra=ADVANCED,
    )

    report_to: Literal["none", "trackio", "tensorboard"] = Field(
        "none",
        description="Where the figures go besides metrics.jsonl: a package of your own that is installed here; its logs"
        " lie in the adapter's folder.",
        json_schema_extra=ADVANCED,
    )

    @model_validator(mode="after")
    def _steps_that_meet(self) -> "FinetuneOptions":
        if self.max_steps == 0:
            raise ValueError("max_steps: 0 steps learn nothing: give -1 for all epochs, or a number")
        uneven = self.save_steps and self.eval_steps and self.save_steps % self.eval_steps
        if uneven and self.load_best_model_at_end and "load_best_model_at_end" in self.model_fields_set:
            text = f"must be a multiple of eval_steps ({self.eval_steps}) to keep the best checkpoint"
            raise ValueError(f"save_steps: {text}: change one, or turn load_best_model_at_end off")
        if self.use_dora and self.quantization == "int8":
            raise ValueError("use_dora: PEFT trains it on 4-bit and 16-bit bases: choose another quantization")
        if self.use_dora and self.target_parameters != "none":
            raise ValueError("use_dora: PEFT trains no experts so: turn it off, or set target_parameters to none")
        if len(self.target_modules) > 1 and "all-linear" in self.target_modules:
            raise ValueError("target_modules: all-linear stands alone: leave the names or it out")
        return self

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model or this machine, before anything is downloaded.

        Raises:
            SpecError: A module to adapt is not in the model; the model is not quantized by transformers; a package that
                was chosen is not installed here.
        """
        self._check_machine()
        known = traits(facts.model_type)
        if self.quantization != "none" and (facts.model_type == "falcon" or known.multiplied):
            text = f"transformers does not load a model of the type '{facts.model_type}' so: choose none"
            raise SpecError(f"quantization: {text} (got {self.quantization})", {"quantization": text})
        if self.target_parameters == "experts" and not has_experts(facts):
            text = f"'{facts.model}' is no mixture of experts: choose none"
            raise SpecError(f"target_parameters: {text}", {"target_parameters": text})
        linears = sorted({tensor.name.split(".")[-2] for tensor in adaptable(facts)})
        if self.target_modules != ALL_LINEAR:
            for module in self.target_modules:
                if module not in linears:
                    text = f"'{module}' is no linear layer of the model: choose among {', '.join(linears)}"
                    raise SpecError(f"target_modules: {text}", {"target_modules": text})
        asked = "max_length" in self.model_fields_set
        if asked and facts.context_length and self.max_length > facts.context_length:
            text = f"is more than the {facts.context_length} tokens that '{facts.model}' was made for: lower it"
            raise SpecError(f"max_length: {text} (got {self.max_length})", {"max_length": text})

    def _check_machine(self) -> None:
        """Refuse what needs a package or a GPU that is not here."""
        packages = {"attn_implementation": ("flash_attention_2", "flash_attn", "flash-attn")}
        packages["report_to"] = (self.report_to, self.report_to, self.report_to)
        for field, (value, module, package) in packages.items():
            if getattr(self, field) == value != "none" and find_spec(module) is None:
                text = f"'{value}' is not installed here: run `pip install {package}`, or leave it out"
                raise SpecError(f"{field}: {text}", {field: text})
        for field, value in (("attn_implementation", "flash_attention_2"), ("tf32", "on")):
            if getattr(self, field) == value and not gpus():
                text = f"'{value}' needs an NVIDIA GPU, and there is none here: choose auto"
                raise SpecError(f"{field}: {text}", {field: text})
