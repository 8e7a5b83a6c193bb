"""Contexts: the KV cache and the texts of what a model has read, on disk. One writer, many readers, crash-safe."""
