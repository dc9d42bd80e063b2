"""The page: one folder a tab; with app.py the only importer of gradio."""
