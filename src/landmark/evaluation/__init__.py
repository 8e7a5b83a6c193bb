"""Measuring converted models: pass keys and perplexity, read through memory, locally, or at once."""
