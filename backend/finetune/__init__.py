"""Fine-tuning: from any table of rows to samples, with nothing silently lost."""
