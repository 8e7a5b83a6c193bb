"""Whole trainings as Python functions: the paper's experiments, at its size and at that of two CPU cores."""
