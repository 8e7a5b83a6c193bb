"""Evaluation of converted models: passkey retrieval and perplexity, through memory, locally or with full attention."""
