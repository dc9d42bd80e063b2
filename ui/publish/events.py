"""What happens in the Publish tab: a result is chosen, its card read and edited, and both leave by one button."""

import gradio as gr
from gradio.blocks import Block

from backend.errors import LoginError
from backend.publish.plan import plan
from backend.stages.kinds import Publication
from ui.changes import hear
from ui.kit.errors import warning
from ui.kit.events import LATEST, QUIET
from ui.kit.forms import Given, Updates
from ui.publish.fields import TOKEN_NEEDED
from ui.publish.tab import PublishTab
from ui.visitor import Visitor, alone, handler


def wire_publish(tab: PublishTab, door: gr.Tab) -> None:
    """Connect the tab, and opening it."""
    _wire_choice(tab, door)
    _wire_place(tab)
    _wire_start(tab)


def _wire_choice(tab: PublishTab, door: gr.Tab) -> None:
    studio = tab.studio

    @handler(studio.settings, tab.note)
    def enter(key: str | None, repo: str | None, who: Visitor) -> Updates:
        return tab.enter(who.owner, key, repo)

    @handler(studio.settings, tab.note)
    def pick(key: str, repo: str | None, who: Visitor) -> Updates:
        owner = who.known()
        return {tab.note: "", **tab.show(studio.result(key, owner), owner, repo)}

    @handler(studio.settings, tab.note)
    def edit(given: Given, who: Visitor) -> Updates:
        owner = who.known()
        result = studio.result(given[tab.artifact], owner)
        edited = tab.contents.edited(given)
        told = tab.preview(result, owner, given[tab.repo], given[tab.variants] or (), edited)
        return {tab.note: "", **told, **tab.progress(result, owner)}

    @handler(studio.settings)
    def follow(key: str | None, who: Visitor) -> Updates:
        owner = who.known()
        return tab.progress(studio.result(key, owner), owner) if key else {tab.result: gr.skip()}

    chosen = [tab.artifact, tab.repo]
    door.select(enter, chosen, tab.outputs(), api_name="publish_enter", **QUIET)
    tab.artifact.input(pick, chosen, tab.chosen(), api_name="publish_pick", **QUIET)
    edits = [tab.repo.change, tab.variants.input, tab.contents.text.blur]
    gr.on(edits, edit, _named(tab), tab.shown(), api_name="publish_edit", **LATEST)
    hear("publications", follow, [tab.artifact], [tab.insist, tab.result])


def _wire_place(tab: PublishTab) -> None:
    settings = tab.studio.settings

    @handler(settings)
    def offer(given: Given, who: Visitor) -> Updates:
        return tab.offer(given, who.owner, who.token(given[tab.token]))

    def place(typed: str) -> str:
        mine = alone(settings)  # where it lies on a Space is nobody's to know
        return str(tab.place(typed)) if mine and typed.strip() else ""

    asked = [tab.artifact.change, tab.where.input, tab.token.blur, tab.token.submit]
    gr.on(asked, offer, {tab.artifact, tab.where, tab.token}, tab.repo, api_name="publish_offer", **LATEST)
    fields = [tab.folder, tab.hub.room, tab.token]
    tab.where.input(tab.choose, tab.where, fields, api_name="publish_where", **QUIET)
    left = [tab.folder.blur, tab.folder.submit]
    gr.on(left, place, tab.folder, tab.folder, api_name="publish_folder", **QUIET)


def _wire_start(tab: PublishTab) -> None:
    settings = tab.studio.settings

    @handler(settings, tab.note)
    def start(given: Given, who: Visitor) -> Updates:
        return _begin(tab, given, who.member(), who.token(given[tab.token]), agreed=False)

    @handler(settings, tab.note, tab.question.room)
    def unload(given: Given, who: Visitor) -> Updates:
        return _begin(tab, given, who.member(), who.token(given[tab.token]), agreed=True)

    form: set[Block] = {*_named(tab), tab.where, tab.folder, *tab.hub.components, tab.token, tab.insist}
    # What came of an earlier try goes first; Gradio runs what hangs on one trigger in turn.
    emptied = [tab.note, tab.result]
    tab.start.click(None, None, emptied, js="() => ['', '']", api_name="publish_begin", **QUIET)
    begun = [tab.note, tab.insist, tab.result, tab.folder, *tab.question.outputs()]
    tab.start.click(start, form, begun, api_name="publish_start", **QUIET)
    tab.question.unload.click(unload, form, begun, api_name="publish_unload_and_start", **QUIET)


def _named(tab: PublishTab) -> set[Block]:
    """Return what sets which files are published, and with which card."""
    return {tab.artifact, tab.repo, tab.variants, *tab.contents.form}


def _begin(tab: PublishTab, given: Given, owner: str, token: str | None, agreed: bool) -> Updates:
    going = tab.destinations(given, owner)
    result, options = going[0]
    if options.repo_id and not token:
        raise LoginError(TOKEN_NEEDED)
    warned: list[str] = []
    planned = plan([(each.folder, place) for each, place in going], token, warned.append)
    specs = [Publication.of(each) for each in planned]
    for spec in specs:
        if asked := tab.question.put(spec, owner, agreed):
            return {tab.note: "", **asked}
    for spec in specs:
        tab.studio.supervisor.submit(spec, owner, token)
    folder = gr.skip() if options.repo_id else tab.free_folder(result, options.to_folder)
    told = {**tab.question.hidden(), **tab.progress(result, owner)}
    return {tab.note: "".join(map(warning, warned)), tab.folder: folder, **told}
