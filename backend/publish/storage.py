"""Storage: whether a free account's private storage has room for what is published, known before anything long is done.

Whatever is published to a new repo is private until it was read back. The limits are those of hub-docs,
storage-limits.md.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from backend.errors import AppError
from backend.hub.pages import LIMITS_PAGE
from backend.hub.patience import HASTY
from backend.publish.card.markdown import size

FREE_BYTES = 100 * 10**9
"""Private storage of a free user or organization; who pays is given more, and pays for what goes beyond."""

_LOOKED_AT = 1000  # repos of a kind: one reply
_ASKED = ["private", "usedStorage"]


def shortage(namespace: str, to_come: int, token: str) -> str | None:
    """Say that a free account's private storage is too small for what is to come, in a sentence with the figures.

    It is no reason to refuse: accounts from before December 2024 keep what they held then on top of the limit. What
    cannot be found out is no shortage.

    Args:
        namespace: Where it goes.
        to_come: Bytes that are published.
        token: Of who publishes.
    """
    from backend.hub import client

    try:
        held = _held(namespace, token)
        if held + to_come <= FREE_BYTES:
            return None
        who = client.ask(lambda: client.api(token).whoami(), namespace, token, HASTY)
    except AppError:
        return None
    if not _is_free(who, namespace):
        return None
    return (
        f"'{namespace}' holds {size(held)} in private repos and {size(to_come)} are to come, but a free account has"
        f" {size(FREE_BYTES)} of private storage: delete what is not needed any more, or choose a paid plan or another"
        f" namespace, see {LIMITS_PAGE}"
    )


def _held(namespace: str, token: str) -> int:
    """Count the bytes of a namespace's private repos, as far as the token sees them."""

    from backend.hub import client

    api = client.api(token)

    def held(listing: Callable[..., Iterable[Any]]) -> int:
        repos = listing(author=namespace, expand=_ASKED, limit=_LOOKED_AT)
        return sum(repo.used_storage or 0 for repo in repos if repo.private)

    listings: tuple[Callable[..., Iterable[Any]], ...] = (api.list_models, api.list_datasets, api.list_spaces)
    return sum(client.ask(partial(held, listing), namespace, token, HASTY) for listing in listings)


def _is_free(who: Mapping[str, Any], namespace: str) -> bool:
    """Return whether the Hub says that an account pays nothing; an organization without a plan has none."""
    if who.get("name") == namespace:
        return who.get("isPro") is False
    return any(
        org.get("name") == namespace and not (org.get("plan") or org.get("isEnterprise"))
        for org in who.get("orgs") or []
    )
