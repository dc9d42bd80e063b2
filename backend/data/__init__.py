"""Data sets: from any table of rows to checked samples, with nothing silently lost."""
