"""Deploying: this app becomes a Space of the user's."""
