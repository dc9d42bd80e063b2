"""The question before a job takes the GPU from a chat."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from backend.spec import Spec
from ui.errors import warning
from ui.events import QUIET
from ui.forms import Updates
from ui.studio import Studio


@dataclass(frozen=True)
class Question:
    """Its components; it is seen only while it is asked."""

    studio: Studio
    room: gr.Column
    text: gr.HTML
    unload: gr.Button
    keep: gr.Button

    def outputs(self) -> list[Any]:
        """What put() and hidden() change."""
        return [self.room, self.text]

    def put(self, spec: Spec, owner: str, agreed: bool) -> Updates | None:
        """Ask, where a job needs the GPU and a model is loaded there; None where the job can start.

        Args:
            spec: Of the job.
            owner: Of the job.
            agreed: Whether the model may be unloaded, which is done then.
        """
        models = self.studio.in_the_way(spec, owner)
        if models and not agreed:
            names = [model.title for model in models]
            verb = "is" if len(names) == 1 else "are"
            text = f"{' and '.join(names)} {verb} loaded on the GPU, which this job needs to itself."
            return {self.room: gr.update(visible=True), self.text: warning(text)}
        for model in models:
            self.studio.unload(model, owner)
        return None

    def hidden(self) -> Updates:
        """Take it back."""
        return {self.room: gr.update(visible=False)}


def build_question(studio: Studio, prefix: str) -> Question:
    """Build it inside the open Blocks.

    Args:
        studio: Whose servers are asked about.
        prefix: Begins the elem_id of each component.
    """
    with gr.Column(visible=False, elem_id=f"{prefix}-question", elem_classes=["question"]) as room:
        text = gr.HTML("")
        with gr.Row(elem_classes=["actions"]):
            unload = gr.Button("Unload and start", variant="primary", size="sm", elem_id=f"{prefix}-unload")
            keep = gr.Button("Keep chatting", size="sm", elem_id=f"{prefix}-keep-chatting")
    question = Question(studio, room, text, unload, keep)
    keep.click(question.hidden, None, [room], **QUIET)
    return question
