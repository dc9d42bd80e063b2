"""Fields of publishing: what is published, where to, and the result; the Publish tab and the panel share them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.context import Context

from backend.errors import SpecError
from backend.publish.adopt import Preview
from backend.publish.card.base_card import read_base_card
from backend.publish.card.metadata import split_card
from backend.publish.destination import choices
from backend.publish.options import PublishOptions
from ui.kit.events import QUIET
from ui.kit.format import escape, size
from ui.kit.forms import Given, OptionForm, Updates, Values, option_form

# Enter would put the first repo that holds what was typed in its place; so it does only for who went to it by arrow.
_TYPED_STAYS = """() => document.addEventListener('keydown', (event) => {
  const box = event.target.closest?.('#%s-repo');
  if (!box) return;
  if (event.key === 'Enter' && !box.dataset.pressed?.startsWith('Arrow')) {
    event.stopImmediatePropagation();
    event.target.blur();
  }
  box.dataset.pressed = event.key;
}, true)"""

TOKEN_NEEDED = "A Hugging Face token is required: paste one with write access above, or run `hf auth login`."

_PICTURE = re.compile(r"!\[([^\[\]]*)\]\([\w.-]+\.png\)")


@dataclass(frozen=True)
class Contents:
    """The files and the card of what would be published; `made` is the text that the card has unless it is edited."""

    files: gr.HTML
    card: gr.Markdown
    text: gr.Textbox
    made: gr.State

    @property
    def components(self) -> list[Block]:
        """What show() changes."""
        return [self.files, self.card, self.text, self.made]

    @property
    def form(self) -> list[Block]:
        """What edited() reads."""
        return [self.text, self.made]

    def edited(self, given: Given) -> str | None:
        """Return the visitor's own text of the card, if they have written one."""
        typed = given[self.text] or ""
        return typed if typed.strip() and typed.strip() != (given[self.made] or "").strip() else None

    def show(self, preview: Preview, edited: str | None) -> Updates:
        """Show what would be published.

        Args:
            preview: Of the folder.
            edited: The visitor's own text that stands in its card, if one does.
        """
        head, text = split_card(preview.card)
        seen = _PICTURE.sub(r"*[picture: \1]*", text)  # it lies beside the card, where the page cannot reach it
        shown: Updates = {self.files: _files(preview.files), self.card: f"```yaml\n{head}\n```\n{seen}"}
        return shown | ({} if edited else {self.text: text, self.made: text})


@dataclass(frozen=True)
class HubFields:
    """The fields of a repo on the Hub as the destination; `more` are those that a first push does without."""

    room: gr.Column
    repo: gr.Dropdown
    private: gr.Checkbox
    more: OptionForm
    token: gr.Textbox

    @property
    def components(self) -> list[Block]:
        """What place() reads."""
        return [self.repo, self.private, *self.more.components]

    def place(self, given: Given) -> Values:
        """Read them as PublishOptions takes them.

        Raises:
            SpecError: No repo is named.
        """
        if not (given[self.repo] or "").strip():
            raise SpecError("Name the repo first: your user name, a slash, and a name for the model.")
        more = self.more.values(given)
        stays = more["update"] and given[self.private]  # who sees a repo that is there is not changed in passing
        return {"repo_id": given[self.repo], "private": None if stays else given[self.private], **more}

    def offer(self, folder: Path, name: str, token: str | None) -> Updates:
        """Offer repos to choose from, one in each namespace of the visitor's; what they typed stays.

        Args:
            folder: What would be published, where it is there already.
            name: Of the repo, but for what a license asks.
            token: The visitor's.
        """
        found = choices(name, read_base_card(folder).licenses, token) if token and folder.is_dir() else []
        return {self.repo: gr.update(choices=found)}


def build_contents(prefix: str) -> Contents:
    """Build them inside the open Blocks.

    Args:
        prefix: Begins the elem_id of each component.
    """
    files = gr.HTML("", elem_id=f"{prefix}-files")
    with gr.Column(elem_classes=["sheet"]):
        gr.HTML("<header><h2>Model card</h2><p>What visitors of the repo will see.</p></header>")
        card = gr.Markdown("", elem_id=f"{prefix}-card", sanitize_html=True)
    with gr.Accordion("Edit the card's text", open=False, elem_classes=["more"]):
        text = gr.Textbox(
            label="Text", lines=14, max_lines=40, elem_id=f"{prefix}-text", elem_classes=["mono"],
            info="In Markdown. The metadata header is generated and cannot be edited. Empty: the generated"
            " text.",
        )  # fmt: skip
    return Contents(files, card, text, gr.State(""))


def build_hub_fields(prefix: str, visible: bool, token: gr.Textbox) -> HubFields:
    """Build them inside the open Blocks.

    Args:
        prefix: Begins the elem_id of each component.
        visible: Whether they are seen at first.
        token: From token_box(), not rendered yet.
    """
    fields, page = PublishOptions.model_fields, Context.root_block
    assert page
    page.load(None, None, None, js=_TYPED_STAYS % prefix, api_name=f"{prefix}_typed_stays", **QUIET)
    token.render()  # type: ignore[no-untyped-call]
    with gr.Column(visible=visible) as room:
        repo = gr.Dropdown(
            [], value=None, allow_custom_value=True, label="Repo", info=fields["repo_id"].description,
            elem_id=f"{prefix}-repo",
        )  # fmt: skip
        private = gr.Checkbox(
            value=True, label="Private", elem_id=f"{prefix}-private",
            info="Only you see the new repo. An existing repo keeps its visibility.",
        )  # fmt: skip
        with gr.Accordion("More options", open=False, elem_classes=["more"]):
            more = option_form(
                PublishOptions, prefix, ("repo_id", "private", "to_folder", "card", "variants", "insist")
            )
    return HubFields(room, repo, private, more, token)


def token_box(prefix: str, visible: bool, empty: str = "") -> gr.Textbox:
    """Make a box for a token, to be rendered where it belongs.

    Args:
        prefix: Begins its elem_id.
        visible: Whether it is seen at first.
        empty: What is done without a token, as a sentence.
    """
    info = "With write access, from huggingface.co/settings/tokens. Used for this session only; never stored."
    return gr.Textbox(
        label="Token", type="password", visible=visible, max_lines=1, elem_id=f"{prefix}-token", render=False,
        info=f"{info} {empty}".strip(),
    )  # fmt: skip


def published(places: Sequence[Mapping[str, Any]]) -> str:
    """Write where artifacts went, from what Published holds."""
    lines = "".join(f"<p>{_place(str(place['location']))}</p>" for place in places)
    compared = "Every file was read back and verified." if all(place["verified"] for place in places) else ""
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
