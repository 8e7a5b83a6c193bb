"""Evaluation: perplexity, passkeys, recall tasks and retrieval, of converted and of ordinary models."""
