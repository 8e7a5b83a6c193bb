"""The tiny random models that `python -m landmark.hf.families` tries, for the tests."""

from landmark.hf.families import FAMILIES, HYBRID, MOE, OTHERS, REJECTED, SMALL, build, family

__all__ = ["FAMILIES", "HYBRID", "MOE", "OTHERS", "REJECTED", "SMALL", "build", "family"]
