"""Merging: LoRA adapters become part of their base model."""
