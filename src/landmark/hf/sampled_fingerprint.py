"""The fingerprint of contexts that were made before every byte of a model counted; kept so that they still open."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from landmark.hf.settings import Settings, text_config

_SAMPLES = 1024  # numbers of each weight


def is_sampled(fingerprint: Mapping[str, Any]) -> bool:
    """Whether a fingerprint was made by this rule."""
    return "config" not in fingerprint


def sampled_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """A model's fingerprint by the old rule: of each weight at most 1,024 numbers, and three fields of the config."""
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
