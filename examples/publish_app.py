"""A Gradio app that publishes one model folder: `python -m examples.publish_app FOLDER`."""

import argparse
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from ui.publish.panel import publish_panel


def build(folder: str) -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title="Publish a model") as page:
        gr.Markdown("# Publish a model")
        publish_panel(folder)
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=7861)
    args = parser.parse_args()
    build(args.folder).launch(server_name="127.0.0.1", server_port=args.port, run_history=False)
