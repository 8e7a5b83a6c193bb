"""What tells one model from another: refused differences can be named."""

import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedModel

from landmark.hf.settings import Settings, text_config

_SAMPLES = 1024  # numbers of each weight that go into its fingerprint


def model_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """All that decides which keys and values a converted model keeps of a text, JSON-able, each under its own name.

    Of every weight at most 1,024 numbers, evenly spread, are looked at, so that a large model takes a moment: training
    changes them all, but a change made by hand to a few other numbers goes unnoticed.
    """
    config = text_config(model.config)
    settings = Settings.of(config)
    positions = {
        name: getattr(config, name, None) for name in ("rope_parameters", "max_position_embeddings", "sliding_window")
    }
    return {
        "model type": config.model_type,
        "number type": str(model.dtype).removeprefix("torch."),
        "positions": json.dumps(positions, sort_keys=True, default=str),
        "block_size": settings.block_size,
        "landmark_id": settings.landmark_id,
        "landmark positions": settings.positions,
        "weights": _weights(model),
    }


def _weights(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        numbers = weight.detach().flatten()
        sample = numbers[:: max(1, len(numbers) // _SAMPLES)].cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
