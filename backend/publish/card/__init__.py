"""The model card: what it says, and where each sentence comes from."""
