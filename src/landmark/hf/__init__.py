"""Hugging Face models: conversion, KV cache, prefill and decoding. Only this package and training use transformers."""

from landmark.hf.adapter_file import load_adapter
from landmark.hf.cache import LandmarkCache
from landmark.hf.convert import convert, from_pretrained
from landmark.hf.reader import read
from landmark.hf.trace import Span, Trace

__all__ = ["LandmarkCache", "Span", "Trace", "convert", "from_pretrained", "load_adapter", "read"]
