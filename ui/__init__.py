"""The page: one module a tab; with app.py the only importer of gradio."""
