"""The model card: a pure function of the artifact's folder, so that it can only say what was recorded.

Front matter follows the Hub's model card metadata (`base_model_relation`, `model-index`, …); a field that is not known
is left out. Whatever a user or the Hub wrote reaches the template as an escaped value, never as template text.
"""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from backend.models.artifacts import TRAINED_HERE, Artifact, Check, open_artifact
from backend.publish.base_card import LICENSE_FILE, BaseCard, read_base_card
from backend.publish.markdown import fenced, literal, size
from backend.publish.training import AdapterUse, adapter_use, hub_dataset, is_causal_lm, needs_a_file, trained

TEMPLATE = Path(__file__).parents[2] / "templates" / "model_card.md.j2"

WORDS = {"nf4": "NF4", "fp4": "FP4"}
"""What the weights that adapters were merged into had been quantized to."""

NEEDED = {"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel"}
"""A quantization's method → the package that transformers loads it with."""

_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def build_card(folder: Path, repo_id: str | None, artifact: Artifact | None = None) -> str:
    """Write the README.md of an artifact.

    Args:
        folder: A sealed artifact.
        repo_id: Where it goes, as parse_repo_id() gives it; None for a folder, whose card loads it from where it lies.
        artifact: What its manifest says, for one whose weights do not lie in the folder any more.

    Raises:
        SpecError: The folder is not an artifact.
    """
    artifact, base, config = (
        _checked(artifact or open_artifact(folder)),
        read_base_card(folder),
        _json(folder / "config.json"),
    )
    title = repo_id.split("/")[-1] if repo_id else _title(artifact)
    recipe, use = folder / "recipe.yaml", adapter_use(folder, artifact)
    card = ModelCard.from_template(
        _metadata(artifact, base, _continues_text(folder, config), title),
        template_path=str(TEMPLATE),
        title=literal(title),
        artifact=artifact,
        base_url=f"https://huggingface.co/{artifact.base_model}" if artifact.base_model else None,
        origin=literal(artifact.origin) if artifact.origin else None,
        weights=_weights(artifact, base, config),
        merged=_merged(artifact),
        training=trained(folder, artifact.training),
        adapter=use,
        at_hand=_at_hand(artifact),
        reference="merged" if artifact.merged and artifact.kind == "quantized" else "base",
        metrics=_quality(artifact),
        load=_loading(folder, repo_id, config, use),
        settings=_settings(artifact),
        made=_made(artifact),
        recipe=fenced(recipe.read_text(encoding="utf-8"), "yaml") if recipe.is_file() else None,
        check=_check(artifact.check),
        license=_license(folder, artifact, base),
        warnings=[literal(warning) for warning in artifact.warnings],
        version=literal(artifact.versions.get("weightsmith", "")),
    )
    return f"{card}\n"


def _checked(artifact: Artifact) -> Artifact:
    """Take out what is no Hub id or no commit: it can be no link."""
    base_model, revision = artifact.base_model or "", artifact.revision or ""
    return artifact.model_copy(
        update={
            "base_model": base_model if _HUB_ID.fullmatch(base_model) else None,
            "revision": revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None,
        }
    )


def _metadata(artifact: Artifact, base: BaseCard, continues_text: bool, title: str) -> ModelCardData:
    relation = _relation(artifact) if artifact.base_model else None
    return ModelCardData(
        base_model=artifact.base_model if relation else None,
        base_model_relation=relation,
        license=_scalar(base.license),
        license_name=base.license_name,
        license_link=_license_link(base, artifact),
        language=list(base.language) or None,
        datasets=_datasets(artifact, base) or None,
        library_name="peft" if artifact.kind == "adapter" else "transformers",
        pipeline_tag="text-generation" if continues_text else None,
        tags=[*base.tags, *(["lora"] if artifact.kind == "adapter" else []), "weightsmith"],
        model_name=title if artifact.metrics else None,
        eval_results=_results(artifact),
    )


def _datasets(artifact: Artifact, base: BaseCard) -> list[str]:
    """Name what the published weights have learned from, as far as all of it is known."""
    if artifact.kind == "adapter" or artifact.merged:
        found = hub_dataset(artifact.training)
        return [found] if found else []
    return [name for name in base.datasets if _HUB_ID.fullmatch(name)]


def _relation(artifact: Artifact) -> str | None:
    """Give what the Hub calls an artifact's relation to its base model: a training weighs more than the bits."""
    if artifact.merged:
        return "finetune" if len(artifact.merged.adapters) == 1 else "merge"
    return artifact.kind if artifact.kind in ("quantized", "adapter") else None


def _at_hand(artifact: Artifact) -> str:
    """Say which folders and files of its author's the recipe needs."""
    adapters = artifact.merged.adapters if artifact.merged else ()
    needed = ["the base model's folder"] if artifact.base_model is None else []
    needed += ["the adapter's folder"] if any("/" not in name and name != TRAINED_HERE for name in adapters) else []
    trains = artifact.kind == "adapter" or TRAINED_HERE in adapters
    needed += ["the file of the rows"] if trains and needs_a_file(artifact.training) else []
    return " and ".join(needed) + (" are" if len(needed) > 1 else " is") if needed else ""


def _merged(artifact: Artifact) -> str | None:
    """Say which adapters are in a model, and what they were merged into."""
    found = artifact.merged
    if found is None:
        return None
    names = []
    for index, (name, weight) in enumerate(zip(found.adapters, found.weights, strict=True)):
        commit = found.revisions[index] if index < len(found.revisions) else ""
        address = f"https://huggingface.co/{name}" + (
            f"/tree/{commit}" if re.fullmatch(r"[0-9a-f]{40}", commit) else ""
        )
        link = f"[{literal(name)}]({address})" if _REPO_ID.fullmatch(name) else f"{literal(name)} (a local folder)"
        link = "trained by this recipe" if name == TRAINED_HERE else link
        names.append(link + (f" with the weight {weight:g}" if weight != 1 else ""))
    what = "The LoRA adapter " if len(names) == 1 else "The LoRA adapters "
    verb = " was" if len(names) == 1 else " were"
    if found.into not in WORDS:
        return f"{what}{', '.join(names)}{verb} merged into the base model's original weights."
    double = " with double quantization" if found.double_quant else ""
    return (
        f"{what}{', '.join(names)}{verb} merged into the base model's weights as {WORDS[found.into]}{double} leaves"
        " them (dequantized), which is what a QLoRA training sees."
    )


def _results(artifact: Artifact) -> list[EvalResult] | None:
    metrics = artifact.metrics
    if metrics is None:
        return None
    named = _REPO_ID.search(metrics.text)
    measured = [
        ("perplexity", "Perplexity", metrics.perplexity),
        ("kl_divergence", "Mean KL divergence from the original, nats a token", metrics.kl_mean),
        ("top1_agreement", "Top-1 agreement with the original", metrics.top1_agreement),
    ]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=named[0] if named else re.sub(r"\W+", "-", metrics.text.lower()).strip("-")[:100] or "text",
            dataset_name=" ".join(metrics.text.split())[:200],
            metric_type=kind,
            metric_name=" ".join(f"{name} ({metrics.convention})".split())[:400],
            metric_value=round(value, 4),
        )
        for kind, name, value in measured
    ]


def _title(artifact: Artifact) -> str:
    name = (artifact.base_model or "model").split("/")[-1]
    made = "adapter" if artifact.kind == "adapter" else "merged" if artifact.merged else ""
    method = "-".join(word for word in (made, artifact.options.get("method")) if word)
    return f"{name}-{method}" if method else name


def _weights(artifact: Artifact, base: BaseCard, config: dict[str, Any]) -> dict[str, Any]:
    """Say how the weights are stored, from the config that loads them, and how large they are."""
    found = sum(file.size for name, file in artifact.files.items() if name.endswith(".safetensors"))
    quantization = config.get("quantization_config") or {}
    bits = quantization.get("bits") or {"load_in_4bit": 4, "load_in_8bit": 8}.get(
        next((key for key in ("load_in_4bit", "load_in_8bit") if quantization.get(key)), "")
    )
    return {
        "bits": bits if isinstance(bits, int) else None,
        "format": literal(quantization["quant_method"]) if quantization.get("quant_method") else None,
        "method": literal(artifact.options["method"]) if artifact.options.get("method") else None,
        "dtype": literal(config.get("dtype") or config.get("torch_dtype") or ""),
        "size": size(found),
        "base_size": size(base.weights_bytes) if base.weights_bytes else None,
        "share": f"{found / base.weights_bytes:.0%}" if base.weights_bytes else None,
    }


def _quality(artifact: Artifact) -> dict[str, Any] | None:
    metrics = artifact.metrics
    if metrics is None:
        return None
    return {
        "perplexity": f"{metrics.perplexity:.2f}",
        "reference": f"{metrics.reference_perplexity:.2f}",
        "change": f"{metrics.perplexity / metrics.reference_perplexity - 1:+.1%}",
        "kl_mean": f"{metrics.kl_mean:.4f}",
        "kl_p99": f"{metrics.kl_p99:.4f}",
        "top1": f"{metrics.top1_agreement:.1%}",
        "flips": f"{metrics.flips:.1%}" if metrics.flips is not None else None,
        "speed": _speed(metrics.tokens_per_second),
        "reference_speed": _speed(metrics.reference_tokens_per_second),
        "engine": literal(metrics.engine),
        "answers": [tuple(map(_cell, (a.prompt, a.reference, a.result))) for a in metrics.answers],
        "same_answers": sum(a.reference == a.result for a in metrics.answers),
        "tokens": f"{metrics.tokens:,}",
        "text": literal(metrics.text),
        "convention": literal(metrics.convention),
    }


def _speed(tokens_per_second: float | None) -> str | None:
    return f"{tokens_per_second:.1f}" if tokens_per_second else None


def _cell(text: str) -> str:
    return literal(text) or "(nothing)"


def _settings(artifact: Artifact) -> list[tuple[str, str]]:
    """List the options as run, the method first."""
    names = sorted((name for name in artifact.options if name != "stage"), key=lambda name: name != "method")
    return [(literal(name), literal(artifact.options[name])) for name in names]


def _check(check: Check | None) -> str:
    """Say what came of trying the model in an engine before it was published."""
    if check is None:
        return "No engine was tried with these files before they were published."
    if not check.passed:
        return f"**It failed, and the author published the model all the same.** {literal(check.reason or '')}"
    return (
        f"{literal(check.engine)} loaded these files and answered {check.prompts} prompts, always with the likeliest"
        f" token. Of the {check.tokens} tokens that it wrote, {check.agreement:.1%} are what the same weights write in"
        f" transformers ({literal(check.convention)}); {check.likeliest:.1%} are exactly the likeliest there."
    )


def _loading(folder: Path, repo_id: str | None, config: dict[str, Any], use: AdapterUse | None) -> dict[str, Any]:
    needed = NEEDED.get((config.get("quantization_config") or {}).get("quant_method", ""))
    more = [needed] if needed else []
    if use:
        more = ["peft", "bitsandbytes"] if use.quantization else ["peft"]
    return {
        "model_id": repo_id or ".",
        "packages": " ".join(["transformers", "torch", "accelerate", *more]),
        "needed": needed,
        "chat_template": (folder / "chat_template.jinja").is_file()
        or bool(_json(folder / "tokenizer_config.json").get("chat_template")),
    }


def _made(artifact: Artifact) -> list[tuple[str, str]]:
    """List what was recorded of the making, as rows of a table."""
    seconds, memory, base, commit = artifact.seconds, artifact.peak_memory_bytes, artifact.base_model, artifact.revision
    versions = ", ".join(f"{name} {number}" for name, number in artifact.versions.items())
    rows = [
        ("Base model", f"[{base}](https://huggingface.co/{base})" if base else "a local folder"),
        ("Its commit", f"[{commit}](https://huggingface.co/{base}/tree/{commit})" if base and commit else commit),
        ("Calibrated on", literal(artifact.calibration) if artifact.calibration else None),
        ("Hardware", literal(artifact.hardware) if artifact.hardware else None),
        ("Time", (f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min") if seconds else None),
        ("Peak memory", size(memory) if memory else None),
        ("Made", literal(artifact.created)),
        ("With", literal(versions) if versions else None),
    ]
    return [(name, value) for name, value in rows if value]


def _license(folder: Path, artifact: Artifact, base: BaseCard) -> dict[str, Any]:
    link = _license_link(base, artifact)
    return {
        "name": literal(base.license_name or ", ".join(base.license)) if base.license else None,
        "link": link if link and link.startswith("https://") else None,
        "files": [literal(name) for name in sorted(artifact.files) if LICENSE_FILE.fullmatch(name)],
    }


def _license_link(base: BaseCard, artifact: Artifact) -> str | None:
    """Give the license's address: a file that lies here, or the base's own, never a file that nobody gets."""
    link = base.license_link
    if link is None or link.startswith("http") or link in artifact.files:
        return link
    if artifact.base_model is None:
        return None
    return f"https://huggingface.co/{artifact.base_model}/blob/{artifact.revision or 'main'}/{link}"


def _scalar(values: tuple[str, ...]) -> Any:
    return list(values) if len(values) > 1 else next(iter(values), None)


def _continues_text(folder: Path, config: dict[str, Any]) -> bool:
    return is_causal_lm(folder) or any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or [])


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
