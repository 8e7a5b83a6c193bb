"""Indexes of landmark keys: which blocks score highest for a query."""
