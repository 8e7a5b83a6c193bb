"""Landmark attention as an operation: reference, blockwise, fused, and attention to retrieved blocks."""
