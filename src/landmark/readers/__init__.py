"""Ways to read in segments that landmark attention is compared or combined with; see `landmark.hf.calls`."""
