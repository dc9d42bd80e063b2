"""The Publish tab, and the panel that any Gradio app can have."""
