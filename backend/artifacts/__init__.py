"""Artifacts: sealed folders that remember how they were made."""
