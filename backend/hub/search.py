"""Search the Hub for models that the studio can work on."""

from pydantic import Field

from backend.hub import client
from backend.options import Frozen


class Hit(Frozen):
    """One model that was found."""

    id: str
    downloads: int = Field(description="In the last 30 days.")
    likes: int
    gated: bool
    updated: str | None = Field(description="Day of the last commit, ISO 8601.")


def search(query: str, limit: int = 20, token: str | None = None) -> list[Hit]:
    """Find causal language models, the most downloaded first.

    Args:
        query: A part of the id; empty finds the most downloaded of all.
        limit: Hits at most.
        token: The caller's Hub token; private models are found with it.

    Raises:
        HubError: The Hub refused or could not be reached.
    """
    found = client.ask(
        lambda: list(
            client.api(token).list_models(
                search=query.strip()[:96] or None,
                pipeline_tag="text-generation",
                filter="transformers",
                sort="downloads",
                limit=limit,
                expand=["downloads", "likes", "gated", "lastModified"],
            )
        ),
        "the search",
        token,
    )
    return [
        Hit(
            id=info.id,
            downloads=info.downloads or 0,
            likes=info.likes or 0,
            gated=bool(info.gated),
            updated=info.last_modified.date().isoformat() if info.last_modified else None,
        )
        for info in found
    ]
