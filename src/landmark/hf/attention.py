"""The attention function of converted models, registered with transformers under the name "landmark".

It computes nothing itself: each layer's queries, keys and values go to the `AttentionCall` of the forward under way.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from landmark.hf.compat import installed
from landmark.ops.scoring import Scoring

NAME = "landmark"


class AttentionCall(Protocol):
    """Computes the attention of every layer in one forward; passed through the model as `landmark_call`."""

    calls: list[int]  # layers that have attended so far, appended by the attention function

    def rotates(self, layer: int) -> bool:
        """Whether the call rotates this layer's queries and keys, so that the model must not."""
        ...

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Attention of one layer: `query [B,H,T,D]`, `key`, `value [B,Hkv,T,D]` to `[B,H,T,D]`."""
        ...


class MissingCall(ValueError):
    """A layer called the attention function without `landmark_call`."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    landmark_call: AttentionCall | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers: `query [B,H,T,D]`, `key`, `value [B,Hkv,T,D]` to `[B,T,H,D]`, and no weights.

    `landmark_call` decides how to attend: over the whole input, through a cache, segment by segment, or as a probe.
    Raises MissingCall without one.
    """
    if landmark_call is None:
        raise MissingCall(
            "the attention implementation 'landmark' was called without landmark_call: call landmark.convert(model), or"
            " choose another attn_implementation; if the model is converted, the installed transformers drops keyword"
            f" arguments on the way to attention ({installed()})"
        )
    landmark_call.calls.append(module.layer_idx)  # type: ignore[arg-type]
    # Under autocast a model's rotation, the identity too, leaves queries and keys in float32 beside 16-bit values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scoring = Scoring(scaling, softcap, s_aux, dropout, sliding_window)
    out = landmark_call.attend(module, query, key, value, scoring)
    return out.transpose(1, 2).contiguous(), None


# No mask function is registered under this name, so transformers builds no [T, T] mask.
AttentionInterface.register(NAME, attention_forward)
