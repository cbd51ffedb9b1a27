"""Pipelines from and to folders and the Hub, with their cards."""
