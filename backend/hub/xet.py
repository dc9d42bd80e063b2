"""Xet: sending files to the store that hf_xet talks to, so that what the Hub says to it is heard.

hf_xet 1.8 asks for its write token again and again for minutes without a word, and tells no refusal from a lost
connection. So the Hub is asked for one first, and once more where hf_xet has failed.
"""

from collections.abc import Sequence

from huggingface_hub import CommitOperationAdd, HfApi, get_session
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils._runtime import is_xet_available

from backend.hub.transport import Unreachable, endpoint


def send_ahead(api: HfApi, repo_id: str, additions: Sequence[CommitOperationAdd], token: str) -> None:
    """Send large files ahead of a commit, by Xet or LFS, whichever huggingface_hub uses.

    Args:
        api: The client of whom sends.
        repo_id: Where to.
        additions: The files; what is small is left for the commit.
        token: Of whom sends.

    Raises:
        Exception: One of transport.FAULTS.
    """
    if is_xet_available():
        _ask_for_a_write_token(repo_id, token)
    try:
        api.preupload_lfs_files(repo_id, additions, free_memory=False)
    except (ConnectionError, TimeoutError) as e:  # hf_xet's: huggingface_hub's own are errors of httpx2
        _ask_for_a_write_token(repo_id, token)
        raise Unreachable(str(e)) from e


def _ask_for_a_write_token(repo_id: str, token: str) -> None:
    url = f"{endpoint()}/api/models/{repo_id}/xet-write-token/main"
    response = get_session().get(url, headers=build_hf_headers(token=token))
    hf_raise_for_status(response)
    response.json()
