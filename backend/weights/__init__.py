"""Safetensors files, read and written without torch."""
