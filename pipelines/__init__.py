"""The pipelines: one a file."""
