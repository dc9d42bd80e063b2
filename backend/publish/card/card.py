"""The model card: a pure function of the artifact's folder, so that it can only say what was recorded.

Whatever a user or the Hub wrote reaches the template as an escaped value, never as template text.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import ELSEWHERE, TRAINED_HERE, Artifact, Check
from backend.artifacts.compared import Compared
from backend.artifacts.scores import Scores
from backend.artifacts.sealing import open_artifact
from backend.disk import read_whole
from backend.intervals import between
from backend.model_folder import kind_of
from backend.models.config import reads_pictures
from backend.publish.card.base_card import BaseCard, read_base_card
from backend.publish.card.licenses import check_name, terms
from backend.publish.card.loss_plot import LOSS_PLOT
from backend.publish.card.markdown import fenced, literal, size
from backend.publish.card.metadata import HUB_ID, REPO_ID, is_lora, license_link, metadata, with_body
from backend.publish.card.training import adapter_use, is_causal_lm, needs_a_file, plot, trained
from backend.publish.card.usage import loading
from backend.quantize.formats import words
from backend.serve.engine import HERE

TEMPLATE = Path(__file__).parents[3] / "templates" / "model_card.md.j2"

WORDS = {"nf4": "NF4", "fp4": "FP4"}
"""What the weights that adapters were merged into had been quantized to."""

ROW_NAMES = {"base": "Base model", "tuned": "Tuned", "quantized": "This model, quantized", "result": "This model"}
"""What the card calls the models that have answered the same rows."""

README, NOTICE = "README.md", "NOTICE"


def written(
    folder: Path,
    repo_id: str | None,
    artifact: Artifact,
    body: str | None = None,
    base: BaseCard | None = None,
    variants: Sequence[str] = (),
) -> dict[str, bytes]:
    """Write what readers of a repo get beside the model: the card, its picture, and the notice that a license asks.

    Args:
        folder: As build_card() takes it.
        repo_id: As build_card() takes it.
        artifact: What the folder holds.
        body: The user's own text of the card.
        base: As build_card() takes it.
        variants: As build_card() takes them.

    Raises:
        SpecError: The folder cannot be read, or a license asks another name of the repo.
    """
    base, picture = base or read_base_card(folder), plot(folder, artifact.training)
    if repo_id:
        check_name(repo_id, base.licenses)
    card = build_card(folder, repo_id, artifact, base, variants)
    files = {README: (with_body(card, body) if body else card).encode()}
    asked = terms(base.licenses)
    if asked and not any(name.lower().startswith(NOTICE.lower()) for name in artifact.files):
        files[NOTICE] = "".join(f"{each.notice}\n" for each in asked).encode()
    return files | ({LOSS_PLOT: picture} if picture else {})


def build_card(
    folder: Path,
    repo_id: str | None,
    artifact: Artifact | None = None,
    base: BaseCard | None = None,
    variants: Sequence[str] = (),
) -> str:
    """Write the README.md of an artifact.

    Args:
        folder: A sealed artifact.
        repo_id: Where it goes, as parse_repo_id() gives it; None for a folder, whose card loads it from where it lies.
        artifact: What its manifest says, for one whose weights do not lie in the folder any more.
        base: What is said of its base model, where that does not lie in the folder yet.
        variants: Repos with the same model made in other ways, as parse_repo_id() gives them.

    Raises:
        SpecError: The folder is not an artifact.
    """
    from huggingface_hub import ModelCard

    artifact = _checked(artifact or open_artifact(folder))
    base = base or read_base_card(folder)
    config = _json(folder / "config.json")
    title = repo_id.split("/")[-1] if repo_id else _title(artifact)
    recipe, use = folder / "recipe.yaml", adapter_use(folder, artifact)
    load = loading(folder, repo_id or HERE, config, use, artifact)
    card = ModelCard.from_template(
        metadata(artifact, base, _task(folder, config), title, loads=not load["refusal"]),
        template_path=str(TEMPLATE),
        title=literal(title),
        artifact=artifact,
        base_url=f"https://huggingface.co/{artifact.base_model}" if artifact.base_model else None,
        origin=literal(artifact.origin) if artifact.origin else None,
        weights=_weights(artifact, base, config),
        merged=_merged(artifact),
        training=trained(folder, artifact.training),
        adapter=use,
        lora=is_lora(artifact),
        elsewhere=artifact.stage == ELSEWHERE,
        made_of=[f"[{name}](https://huggingface.co/{name})" for name in base.base_model],
        at_hand=_at_hand(artifact),
        reference="merged" if artifact.merged and artifact.kind == "quantized" else "base",
        metrics=_quality(artifact),
        load=load,
        settings=_settings(artifact),
        made=_made(artifact),
        recipe=fenced(recipe.read_text(encoding="utf-8", errors="replace"), "yaml") if recipe.is_file() else None,
        check=_check(artifact.check),
        variants=[f"[{literal(name)}](https://huggingface.co/{name})" for name in variants if name != repo_id],
        license=_license(artifact, base),
        warnings=[literal(warning) for warning in artifact.warnings],
        version=literal(artifact.versions.get("weightsmith", "")),
    )
    return f"{card}\n"


def _checked(artifact: Artifact) -> Artifact:
    """Take out what is no Hub id or no commit: it can be no link."""
    base_model, revision = artifact.base_model or "", artifact.revision or ""
    return artifact.model_copy(
        update={
            "base_model": base_model if HUB_ID.fullmatch(base_model) else None,
            "revision": revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None,
        }
    )


def _at_hand(artifact: Artifact) -> str:
    """Say which folders and files of its author's the recipe needs."""
    adapters = artifact.merged.adapters if artifact.merged else ()
    needed = ["the base model's folder"] if artifact.base_model is None else []
    needed += ["the adapter's folder"] if any("/" not in name and name != TRAINED_HERE for name in adapters) else []
    trains = artifact.kind == "adapter" or TRAINED_HERE in adapters
    needed += ["the file of the rows"] if trains and needs_a_file(artifact.training) else []
    if not needed:
        return ""
    verb = "are" if len(needed) > 1 else "is"
    return f"{' and '.join(needed)} {verb}"


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
        link = f"[{literal(name)}]({address})" if REPO_ID.fullmatch(name) else f"{literal(name)} (a local folder)"
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


def _title(artifact: Artifact) -> str:
    name = "" if artifact.stage == ELSEWHERE else "model"
    if artifact.base_model:
        name = artifact.base_model.split("/")[-1]
    made = "merged" if artifact.merged else ""
    if artifact.kind == "adapter":
        made = "adapter"
    return "-".join(word for word in (name, made, artifact.options.get("method")) if word) or "model"


def _weights(artifact: Artifact, base: BaseCard, config: dict[str, Any]) -> dict[str, Any]:
    """Say how the weights are stored, from the config that loads them, and how large they are."""
    found = sum(file.size for name, file in artifact.files.items() if name.endswith(".safetensors"))
    quantization = config.get("quantization_config") or {}
    return {
        "quantized": literal(words(config)),
        "part": f"{artifact.quantized_share:.1%}" if artifact.quantized_share is not None else None,
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
        "change": f"{metrics.perplexity_change:+.1%}{between(metrics.interval('perplexity_change'), '+.1%')}",
        "kl_mean": f"{metrics.kl_mean:.4f}",
        "kl_between": between(metrics.interval("kl_mean"), ".4f"),
        "kl_p99": f"{metrics.kl_p99:.4f}",
        "top1": f"{metrics.top1_agreement:.1%}",
        "top1_between": between(metrics.interval("top1_agreement"), ".1%"),
        "flips": f"{metrics.flips:.1%}{between(metrics.interval('flips'), '.1%')}"
        if metrics.flips is not None
        else None,
        "speed": _speed(metrics.tokens_per_second),
        "reference_speed": _speed(metrics.reference_tokens_per_second),
        "engine": literal(metrics.engine),
        "answers": [tuple(map(_cell, (a.prompt, a.reference, a.result))) for a in metrics.answers],
        "same_answers": sum(a.reference == a.result for a in metrics.answers),
        "tokens": f"{metrics.tokens:,}",
        "text": literal(metrics.text),
        "convention": literal(metrics.convention),
        "sureness": metrics.sureness,
        "rows": _rows(metrics.rows) if metrics.rows else None,
        "tasks": _tasks(metrics.tasks) if metrics.tasks else None,
    }


def _rows(compared: Compared) -> dict[str, Any]:
    """Say how answers to rows compare; no row stands there."""
    models = []
    for one in compared.models:
        change = one.change
        right = f"{one.right} of {compared.short}" if compared.short else ""
        moved = [change.words, str(change.better), str(change.worse)] if change else ["", "", ""]
        models.append([ROW_NAMES[one.name], f"{one.loss:.3f}", *moved, right])
    return {"words": compared.words, "legend": literal(compared.legend), "models": models}


def _tasks(tasks: Scores) -> dict[str, Any]:
    """List the scores of benchmarks."""
    scores = [[literal(one.task), literal(one.metric), one.asked, *one.figures] for one in tasks.scores]
    return {"legend": literal(tasks.legend), "scores": scores}


def _speed(tokens_per_second: float | None) -> str | None:
    return f"{tokens_per_second:.1f}" if tokens_per_second else None


def _cell(text: str) -> str:
    return literal(text) or "(nothing)"


def _settings(artifact: Artifact) -> list[tuple[str, str]]:
    """List the options as run, the method first; how rows are read is none where none were named."""
    unread = () if "calibration" in artifact.options else ("calibration_",)  # as artifacts had it before 2027
    options: dict[str, Any] = {}
    for name, value in artifact.options.items():
        if isinstance(value, dict):  # options within options
            options |= {f"{name}.{part}": said for part, said in value.items()}
        elif name != "stage" and not name.startswith(unread):
            options[name] = value
    return [(literal(name), literal(options[name])) for name in sorted(options, key=lambda name: name != "method")]


def _check(check: Check | None) -> str:
    """Say what came of trying the model in an engine before it was published."""
    if check is None:
        return "No engine was tried with these files before they were published."
    if not check.passed:
        return f"**It failed, and the author published the model all the same.** {literal(check.reason or '')}"
    text = (
        f"{literal(check.engine)} loaded these files and answered {check.prompts} prompts, always with the likeliest"
        f" token. Of the {check.tokens} tokens that were compared, {check.agreement:.1%} are what the same weights"
        f" write in transformers ({literal(check.convention)}); {check.likeliest:.1%} are exactly the likeliest there."
    )
    return f"{text} {literal(check.silent)}" if check.silent else text


def _made(artifact: Artifact) -> list[tuple[str, str]]:
    """List what was recorded of the making, as rows of a table."""
    seconds = artifact.seconds
    memory = artifact.peak_memory_bytes
    base = artifact.base_model
    commit = artifact.revision
    versions = ", ".join(f"{name} {number}" for name, number in artifact.versions.items())
    layouts = ", ".join(artifact.layouts or ())
    here = artifact.stage != ELSEWHERE
    local = "a local folder" if here else None
    time = None
    if seconds:
        time = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    rows = [
        ("Base model", f"[{base}](https://huggingface.co/{base})" if base else local),
        ("Its commit", f"[{commit}](https://huggingface.co/{base}/tree/{commit})" if base and commit else commit),
        ("Calibrated on", literal(artifact.calibration) if artifact.calibration else None),
        ("Calibrated once for", f"the layouts {literal(layouts)}: the same weights in each" if layouts else None),
        ("Hardware", literal(artifact.hardware) if artifact.hardware else None),
        ("Time", time),
        ("Peak memory", size(memory) if memory else None),
        ("Made", literal(artifact.created) if here else None),
        ("With" if here else "Saved with", literal(versions) if versions else None),
    ]
    return [(name, value) for name, value in rows if value]


def _license(artifact: Artifact, base: BaseCard) -> dict[str, Any]:
    link, asked = license_link(base, artifact), terms(base.licenses)
    return {
        "name": literal(base.license_name or ", ".join(base.license)) if base.license else None,
        "link": link if link and link.startswith("https://") else None,
        "files": [literal(name) for name in sorted(artifact.files) if kind_of(name) == "license"],
        "of_base": base.license_of_base,
        "notices": [literal(each.notice) for each in asked],
        "built_with": [each.built_with for each in asked if each.built_with],
    }


def _task(folder: Path, config: dict[str, Any]) -> str | None:
    """Return what the Hub calls the task of a model, or of an adapter's model."""
    if config and reads_pictures(config):
        return "image-text-to-text"
    writes = is_causal_lm(folder) or any(
        str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or []
    )
    return "text-generation" if writes else None


def _json(path: Path) -> dict[str, Any]:
    return read_whole(path, dict[str, Any]) or {}
