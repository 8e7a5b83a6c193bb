"""Figures drawn. The only package that knows matplotlib."""
