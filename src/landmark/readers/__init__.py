"""Attention over segments (`landmark.hf.calls`): baselines of landmark attention, and combinations with them."""
