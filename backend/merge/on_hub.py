"""Adapters where they lie: looked at before a job begins, brought to this machine by its fetch step."""

from collections.abc import Sequence
from pathlib import Path

from backend.artifacts.sealing import is_sealed
from backend.errors import SpecError
from backend.hub.files import HubFiles, LocalFiles
from backend.hub.ids import is_local, parse_model, parse_repo_id
from backend.merge.adapter import Adapter, read_adapter
from backend.merge.merging import described, trained_on
from backend.merge.options import MergeOptions
from backend.merge.plan import Base
from backend.models.admission import admit_adapter
from backend.models.facts import ModelFacts
from backend.models.fetch import download, downloaded, model_folder, take_apart
from backend.progress import Report
from backend.strict_json import quoted


def inspect_adapter(name: str, revision: str | None, token: str | None) -> tuple[Adapter, str]:
    """Look at an adapter without downloading its weights.

    Args:
        name: A repo id, or the absolute path of a local folder.
        revision: A branch, tag or commit of a repo; None or empty is its main branch.
        token: The caller's Hub token.

    Returns:
        The adapter; its commit, empty for a folder.

    Raises:
        SpecError: It is none that can be merged; the file, the field, what to do.
        HubError: The Hub refused or could not be reached.
    """
    if is_local(name):
        files = LocalFiles(Path(name))
        admit_adapter(files)
        return read_adapter(files, Path(name).name), ""
    from backend.hub import client

    commit = client.resolve(name, revision or None, token)
    client.check_access(name, token)
    remote = HubFiles(name, commit, token)
    admit_adapter(remote)
    return read_adapter(remote, name), commit


def inspect_adapters(options: MergeOptions, facts: ModelFacts, token: str | None) -> MergeOptions:
    """Compare adapters with their base model before either is downloaded.

    Returns:
        The options with each adapter's commit.

    Raises:
        SpecError: An adapter does not fit; what, and what to do.
        HubError: The Hub refused or could not be reached.
    """
    revisions = options.adapter_revisions or ("",) * len(options.adapters)
    found = [inspect_adapter(*pair, token) for pair in zip(options.adapters, revisions, strict=True)]
    adapters = [adapter for adapter, _ in found]
    for adapter in adapters:
        if not options.other_base:
            _check_base(adapter, facts)
    trained_on(adapters, options)
    base = Base(facts.base_model or Path(facts.model).name, facts.model_type, facts.tensors)
    described(base, facts.config, adapters, options)
    return options.model_copy(update={"adapter_revisions": tuple(commit for _, commit in found)})


def _check_base(adapter: Adapter, facts: ModelFacts) -> None:
    """Refuse an adapter that names another model of the Hub as its base; a path of its author's says nothing."""
    try:
        named = parse_repo_id(adapter.base_model or "")
    except ValueError:
        return
    if adapter.on_folder:
        return
    if facts.base_model and named.lower() != facts.base_model.lower():
        raise SpecError(
            f"'{adapter.name}' was trained on {quoted(named)}, not on '{facts.base_model}': choose that base model, or"
            " set other_base if both have the same weights."
        )


def base_of(names: Sequence[str], token: str | None) -> str:
    """Return the base model that adapters name in their settings.

    Args:
        names: Of the adapters, as they were typed.
        token: The caller's Hub token.

    Raises:
        SpecError: They name none, or different ones.
    """
    try:
        adapters = [inspect_adapter(parse_model(name, paths=True), None, token)[0] for name in names]
        if local := next((adapter for adapter in adapters if adapter.on_folder), None):
            what = f"{quoted(local.name)} was tuned on a local folder, {quoted(local.base_model)}"
            raise SpecError(f"{what}: give that folder, or the model in it, with --base.")
        bases = {parse_model(adapter.base_model, paths=True) for adapter in adapters if adapter.base_model}
    except ValueError as e:
        raise SpecError(f"The adapter, or the base model in its settings, {e}. Give the base model with --base.") from e
    if len(bases) != 1:
        what = f"name {' and '.join(sorted(bases))} as" if bases else "do not name"
        raise SpecError(f"The adapters' settings {what} their base model: give it with --base.")
    return next(iter(bases))


def fetch_adapters(options: MergeOptions, models_dir: Path, token: str | None, report: Report) -> list[Path]:
    """Return the folders of adapters, downloading those that do not lie here yet.

    Args:
        options: With the commit of each adapter of the Hub.
        models_dir: Where models lie.
        token: The caller's Hub token.
        report: Receives the bytes.

    Raises:
        SpecError: An adapter is refused; the file, the field, what to do.
        HubError: The Hub refused, could not be reached, or sent something else than it had announced.
        HardwareError: The disk is too small, with both figures.
    """
    revisions = options.adapter_revisions or ("",) * len(options.adapters)
    return [_fetch(*pair, models_dir, token, report) for pair in zip(options.adapters, revisions, strict=True)]


def _fetch(name: str, revision: str, models_dir: Path, token: str | None, report: Report) -> Path:
    from huggingface_hub.utils._fixes import WeakFileLock

    adapter, commit = inspect_adapter(name, revision, token)
    if is_local(name):
        return Path(name)
    files = HubFiles(name, commit, token)
    target = model_folder(models_dir, name, commit)
    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(f"{commit}.lock")):
        if not is_sealed(target):
            take_apart(target)
            artifact = downloaded(name, commit, "adapter").model_copy(update={"options": adapter.quantization})
            download(files, admit_adapter(files), target, artifact, report)
    return target
