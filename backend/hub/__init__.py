"""The Hugging Face Hub: what is asked of it, and what comes and goes; nothing of models is known here."""
