"""What would leave this machine, where to, and where it went: the parts of the Publish tab and the publish panel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backend.errors import SpecError
from backend.publish import PublishOptions
from backend.publish.outgoing import README, OutgoingFile
from ui.format import escape, size
from ui.forms import Updates


@dataclass(frozen=True)
class Contents:
    """The files and the card of what would be published."""

    files: gr.HTML
    card: gr.Markdown

    @property
    def components(self) -> list[Any]:
        """What show() changes."""
        return [self.files, self.card]

    def show(self, sent: Mapping[str, OutgoingFile]) -> Updates:
        """Show what outgoing() gives."""
        return {
            self.files: _files({name: file.size for name, file in sent.items()}),
            self.card: _as_markdown(sent[README].read().decode()),
        }


@dataclass(frozen=True)
class HubFields:
    """The fields of a repo on the Hub as the destination."""

    repo: gr.Textbox
    private: gr.Checkbox
    token: gr.Textbox

    def place(self, given: dict[Any, Any]) -> dict[str, Any]:
        """Read them as PublishOptions takes them.

        Raises:
            SpecError: No repo is named.
        """
        if not (given[self.repo] or "").strip():
            raise SpecError("Name the repo first: your user name, a slash, and a name for the model.")
        return {"repo_id": given[self.repo], "private": given[self.private]}


def build_contents(prefix: str) -> Contents:
    """Build them inside the open Blocks.

    Args:
        prefix: Begins the elem_id of each component.
    """
    files = gr.HTML("", elem_id=f"{prefix}-files")
    with gr.Column(elem_classes=["sheet"]):
        gr.HTML("<header><h2>Model card</h2><p>What readers of the repo will see.</p></header>")
        card = gr.Markdown("", elem_id=f"{prefix}-card", sanitize_html=True)
    return Contents(files, card)


def build_hub_fields(prefix: str, visible: bool, token: gr.Textbox) -> HubFields:
    """Build them inside the open Blocks.

    Args:
        prefix: Begins the elem_id of each component.
        visible: Whether they are seen at first.
        token: From token_box(), not rendered yet.
    """
    fields = PublishOptions.model_fields
    repo = gr.Textbox(
        label="Repo", info=fields["repo_id"].description, placeholder="your-name/model-nf4", max_lines=1,
        visible=visible, elem_id=f"{prefix}-repo",
    )  # fmt: skip
    private = gr.Checkbox(
        value=True, label="Private", info=fields["private"].description, visible=visible, elem_id=f"{prefix}-private"
    )
    token.render()
    return HubFields(repo, private, token)


def token_box(prefix: str, visible: bool, empty: str = "") -> gr.Textbox:
    """Make a box for a token, to be rendered where it belongs.

    Args:
        prefix: Begins its elem_id.
        visible: Whether it is seen at first.
        empty: What is done without a token, as a sentence.
    """
    info = "With write access, from huggingface.co/settings/tokens. Used for this visit and never stored."
    return gr.Textbox(
        label="Token", type="password", visible=visible, max_lines=1, elem_id=f"{prefix}-token", render=False,
        info=f"{info} {empty}".strip(),
    )  # fmt: skip


def published(places: Sequence[Mapping[str, Any]]) -> str:
    """Write where artifacts went, from what Published holds."""
    lines = "".join(f"<p>{_place(str(place['location']))}</p>" for place in places)
    compared = "Every file was read back and compared." if all(place["verified"] for place in places) else ""
    head = f"<header><h2>Published</h2><p>{compared}</p></header>"
    return f'<section class="panel published">{head}{lines}</section>'


def _place(place: str) -> str:
    """Write a place: a link to the Hub, or a folder's path."""
    return link(place) if place.startswith(("https://", "http://")) else f"<code>{escape(place)}</code>"


def link(address: str) -> str:
    """Write an address of the Hub so that it opens beside the page."""
    return f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">{escape(address)}</a>'


def _files(sizes: dict[str, int]) -> str:
    """Write the list of files, the largest first."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{size(count)}</td></tr>"
        for name, count in sorted(sizes.items(), key=lambda item: -item[1])
    )
    total = f"{len(sizes)} files, {size(sum(sizes.values()))}"
    return (
        f'<section class="panel"><header><h2>Files</h2><p>{total}</p></header><div class="wide"><table><tbody>{rows}'
        "</tbody></table></div></section>"
    )


def _as_markdown(text: str) -> str:
    """Give a card as Markdown shows it: the front matter as code, the rest rendered."""
    parts = text.split("---\n", 2)
    if not text.startswith("---\n") or len(parts) < 3:
        return text
    return f"```yaml\n{parts[1].strip()}\n```\n{parts[2]}"
