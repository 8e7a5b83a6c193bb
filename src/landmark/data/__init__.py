"""Data: text sources, tokenization, token files and recall tasks."""
