"""What is meant by the names of models and folders that were typed."""

from pathlib import Path

from backend.errors import SpecError
from backend.hub.ids import parse_model
from backend.progress import silent
from backend.settings import Settings

MODEL_HELP = "A Hub id, demo (the bundled model), or a local folder."


def hub_token() -> str | None:
    """Return the token of who uses this machine: HF_TOKEN's, or that of `hf auth login`."""
    from huggingface_hub import get_token

    return get_token()


def local_or_id(model: str, what: str = "reference") -> str:
    """Return what a model's name on the command line means."""
    try:
        return parse_model(model, paths=True)
    except ValueError as e:
        raise SpecError(f"The {what} {e}.") from e


def existing(folder: Path) -> Path:
    """Return the absolute path of a folder that must exist."""
    if not folder.is_dir():
        raise SpecError(f"'{folder}' is not a folder: check the path.")
    return folder.resolve()


def admitted(folder: Path) -> Path:
    """Return the absolute path of a model folder, after the checks that any model passes before a library sees it."""
    from backend.models.fetch import check_model

    check_model(existing(folder))
    return folder.resolve()


def fetched(base_model: str, settings: Settings) -> Path:
    """Return the folder of an adapter's base model, which is downloaded where it is not here."""
    from backend.models.fetch import fetch_model

    name = local_or_id(base_model, "base model")
    return fetch_model(name, None, settings.models, hub_token(), silent())
