"""The one place that talks to the Hub's library; its errors become sentences.

Every call is given the asker's token, or False, which means anonymous: never the machine owner's own.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status

from backend import __version__
from backend.errors import HubError
from backend.hub.errors import translated
from backend.hub.patience import Patience, patiently
from backend.hub.transport import FAULTS

T = TypeVar("T")

WAITS = (0.5, 2.0)  # seconds before a second and a third try
MAX_RETRY_AFTER = 30.0  # seconds; who is told to wait longer is told so


class Place(Protocol):
    """A repo at a commit, and who looks at it."""

    repo_id: str
    commit: str
    token: str | None
    repo_type: str


def resolve(model: str, revision: str | None, token: str | None, patience: Patience | None = None) -> str:
    """Return the commit, 40 hex digits, that a branch, tag or commit of a model means now."""
    return commit_of(model_info(model, revision, token, patience), model)


def commit_of(info: ModelInfo | DatasetInfo, repo_id: str) -> str:
    """Return the commit of what the Hub told of a repo."""
    if not isinstance(info.sha, str) or len(info.sha) != 40 or not info.sha.isalnum():
        raise HubError(f"The Hub named no commit of '{repo_id}': check HF_ENDPOINT, or try again.")
    return info.sha


def model_info(model: str, revision: str | None, token: str | None, patience: Patience | None = None) -> ModelInfo:
    """Ask the Hub what it knows of a model at a revision."""
    return ask(lambda: api(token).model_info(model, revision=revision), model, token, patience)


def dataset_info(dataset: str, revision: str | None, token: str | None) -> DatasetInfo:
    """Ask the Hub what it knows of a data set at a revision."""
    return ask(lambda: api(token).dataset_info(dataset, revision=revision), dataset, token)


def check_access(repo_id: str, token: str | None, repo_type: str = "model") -> None:
    """Raise unless the token may read the repo's files.

    Asked before every load, also of files that lie here already: whoever fetched them may have had more rights.
    """
    ask(lambda: api(token).auth_check(repo_id, repo_type=repo_type), repo_id, token)


def list_files(
    repo_id: str, commit: str, token: str | None, repo_type: str = "model", patience: Patience | None = None
) -> list[RepoFile]:
    """List the files of a repo at a commit."""
    listed = ask(
        lambda: list(api(token).list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)),
        repo_id,
        token,
        patience,
    )
    return [entry for entry in listed if isinstance(entry, RepoFile)]


def chunks(place: Place, name: str, start: int, end: int) -> Iterator[bytes]:
    """Fetch the bytes of a file from `start` to before `end`, as they come; run inside ask().

    Plain HTTP ranges, also for files in Xet: a killed download goes on from its last byte, which neither
    huggingface_hub 2.4 nor hf_xet 1.8 does.
    """
    url = hf_hub_url(place.repo_id, name, repo_type=place.repo_type, revision=place.commit)
    headers = build_hf_headers(token=place.token or False)
    headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        skip = 0 if response.status_code == 206 else start  # a server that knows no ranges sends the whole file
        left = end - start
        for chunk in response.iter_bytes():
            piece = chunk[skip:][:left]
            skip, left = max(0, skip - len(chunk)), left - len(piece)
            if piece:
                yield piece
            if left == 0:
                return


def read_range(place: Place, name: str, start: int, end: int) -> bytes:
    """Fetch the bytes of a file from `start` to before `end`."""
    return ask(lambda: b"".join(chunks(place, name, start, end)), place.repo_id, place.token)


def api(token: str | None) -> HfApi:
    """Return the Hub's client for one asker."""
    return HfApi(token=token or False, library_name="weightsmith", library_version=__version__)


def ask(question: Callable[[], T], repo_id: str, token: str | None, patience: Patience | None = None) -> T:
    """Call the Hub; what may pass by itself is tried again, everything else is put into words.

    Args:
        question: One call of huggingface_hub, run to its end.
        repo_id: What it is about, for the error.
        token: What it was asked with, which decides what a refusal means.
        patience: How long it is tried; by default, three times within seconds.

    Raises:
        LoginError: The Hub wants a token, or a better one.
        HubError: It refused, or could not be reached.
    """
    try:
        return patiently(question, patience or Patience(WAITS, longest=MAX_RETRY_AFTER))
    except FAULTS as e:
        raise translated(e, repo_id, token) from e
