"""Decoder layers that read a few tokens on a CPU, as in decoding, in a handful of compiled calls.

A step of decoding takes one row through every layer, and what transformers does around attention is some sixty small
operations a layer, which cost more than the weights that are read. Layers of the usual form (norms by root mean square,
three projections, a gated feed-forward network with SiLU) are computed by the loops of `landmark.ops.few_rows`;
attention stays where it was. Whether a layer has that form is not guessed from its name: its parts are looked at, and
once it computes some random tokens both ways. Where the two differ, and where parts have hooks or adapters, the layer
stays that of transformers.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from landmark.hf.chunks import ChunkCall
from landmark.hf.in_front import put_in_front, reduced
from landmark.hf.int8 import Int8Linear
from landmark.hf.joined import JoinedCall
from landmark.hf.linear import FewRowsLinear
from landmark.hf.rope import close
from landmark.hf.unchanged import GLOBAL_HOOKS, Unchanged, has_hooks
from landmark.memory.decode import FewTokens
from landmark.ops.few_rows import behind_attention, pieces_of, project, serves_rows, weights_of
from landmark.ops.numba_loops import as_array
from landmark.ops.parallel import parts_of
from landmark.ops.scoring import Scoring, working_dtype

_PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
_SILU = (nn.SiLU, SiLUActivation)
_EPS = ("variance_epsilon", "eps")  # names of the number that norms add, by family
_UNKNOWN: Any = object()
_NOISE = 0.01  # of the tokens that are computed both ways: next to it the number that norms add shows


class FewTokensMixin:
    """The forward of a decoder layer that computes few tokens by compiled loops where they serve it."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(FewTokensMixin, self, super().__reduce_ex__(protocol))

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        layer: Any = self
        call = options.get("landmark_call")
        if isinstance(call, (ChunkCall, JoinedCall)) and not layer.training:
            loops = _loops(layer, hidden_states, args, options)
            if loops is not None:
                return loops.forward(hidden_states, call)
        return super().forward(hidden_states, *args, **options)  # type: ignore[misc]

    def _apply(self, *args: Any, **options: Any) -> Any:
        _LOOPS.pop(self, None)  # type: ignore[call-overload]  # their arrays would keep weights that move elsewhere
        return super()._apply(*args, **options)  # type: ignore[misc]


def serve_few_tokens(base: nn.Module) -> None:
    """Puts `FewTokensMixin` in front of the class of every decoder layer of `base` that has the usual parts."""
    for module in list(base.modules()):
        if not isinstance(module, FewTokensMixin) and _has_parts(module):
            put_in_front(FewTokensMixin, module)


def _has_parts(layer: Any) -> bool:
    """Whether a module has the parts of a decoder layer of the usual form, and no others."""
    for name, parts in _PARTS.items():
        module: Any = getattr(layer, name, None) if name else layer
        if not isinstance(module, nn.Module) or {part for part, _ in module.named_children()} != parts:
            return False
    norms = layer.input_layernorm, layer.post_attention_layernorm
    return type(layer.mlp.act_fn) in _SILU and all(map(_is_norm, norms))


def _is_norm(module: Any) -> bool:
    """Whether a module may be a norm by root mean square: it has a weight alone, and the number that is added."""
    return [name for name, _ in module.named_parameters()] == ["weight"] and _eps_of(module) is not None


@dataclass
class _Recorder:
    """Attention call that records what a layer asks for, for so many rows; its output is the values."""

    rows: int
    calls: list[int] = field(default_factory=list)
    asked: list[tuple[Tensor, Tensor, Tensor, Scoring]] = field(default_factory=list)

    def rotates(self, layer: int) -> bool:
        return True

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        self.asked.append((query, key, value, scoring))
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1)

    def attend_few(self, module: nn.Module, tokens: FewTokens, scoring: Scoring) -> Any:
        out = self.attend(module, *tokens.tensors(0, self.rows, len(tokens.query) // self.rows), scoring)
        return out.transpose(1, 2).reshape(len(tokens.query), -1).to(working_dtype(out)).numpy()


def _eps_of(norm: Any) -> float | None:
    """The number that a norm adds to the mean square; None where it is not found."""
    return next((getattr(norm, name) for name in _EPS if isinstance(getattr(norm, name, None), float)), None)


class _Loops:
    """The loops of one layer, over arrays of its weights; `scoring` and `head_dim` are those of its attention."""

    def __init__(self, layer: Any, scoring: Scoring, head_dim: int) -> None:
        *linears, first, second = _parts(layer)
        self._parts = Unchanged(layer)
        self._attention, self._scoring, self._head_dim = layer.self_attn, scoring, head_dim
        query, key, value, out, *network = (weights_of(*x.parts) for x in linears)
        norms = [(as_array(norm.weight), _eps_of(norm)) for norm in (first, second)]
        self._before, self._behind = (*norms[0], (query, key, value)), (out, *norms[1], *network)
        self._pieces = pieces_of(query, key, value, out, *network) // 4  # of a region of threads, in the mean

    def current(self) -> bool:
        """Whether the arrays are still those of the layer, whose parts have no hooks and no forward of their own."""
        return self._parts.current()

    def forward(self, hidden: Tensor, call: Any) -> Tensor:
        """The layer's output for `hidden [B,T,C]`."""
        x = hidden.reshape(-1, hidden.shape[-1]).to(working_dtype(hidden)).contiguous().numpy()
        parts = parts_of(self._pieces)
        query, key, value = (one.reshape(len(x), -1, self._head_dim) for one in project(x, *self._before, parts))
        call.calls.append(self._attention.layer_idx)
        attended = call.attend_few(self._attention, FewTokens(query, key, value, hidden.dtype), self._scoring)
        out = behind_attention(x, attended, *self._behind, parts)
        return torch.from_numpy(out).view(hidden.shape).to(hidden.dtype)


_LOOPS: WeakKeyDictionary[nn.Module, _Loops | None] = WeakKeyDictionary()  # None: the layer has another form


def _loops(layer: Any, hidden: Tensor, args: tuple, options: dict[str, Any]) -> _Loops | None:
    """The loops of `layer` for `hidden [B,T,C]`, None where they do not serve."""
    # In float64 rounding would show: models compute norms in float32 all the same, in another order.
    if hidden.dtype == torch.float64 or not serves_rows(hidden, hidden):
        return None
    if not options["landmark_call"].rotates(layer.self_attn.layer_idx):
        return None
    loops = _LOOPS.get(layer, _UNKNOWN)
    if loops is _UNKNOWN or (loops is not None and not loops.current()):
        if not _is_served(layer, hidden):
            return None
        loops = _LOOPS[layer] = _checked(layer, hidden, args, options)
    return loops


def _is_served(layer: Any, hidden: Tensor) -> bool:
    """Whether the parts of `layer` are such as the loops read, of the dtype of `hidden`, without hooks or adapters."""
    if not _has_parts(layer) or any(GLOBAL_HOOKS):
        return False
    *linears, first, second = _parts(layer)
    # No class made of these: one that computes its weights, as parametrizations do, gives a new tensor each time.
    weights = [part.parts[0] for part in linears if type(part) in (FewRowsLinear, Int8Linear)]
    return (
        len(weights) == len(linears)
        and all(serves_rows(hidden, weight) for weight in (*weights, first.weight, second.weight))
        and not any(_is_changed(module) for module in layer.modules() if module is not layer)
    )


def _parts(layer: Any) -> list[Any]:
    """Linear layers of the attention and of the feed-forward network, and both norms, in the order of their use."""
    attention, network = layer.self_attn, layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return [
        *projections, network.gate_proj, network.up_proj, network.down_proj, layer.input_layernorm,
        layer.post_attention_layernorm,
    ]  # fmt: skip


def _is_changed(module: nn.Module) -> bool:
    """Whether a module does more than its class: by hooks, see `has_hooks`, or by a forward of its own."""
    return has_hooks(module) or "forward" in vars(module)


def _checked(layer: Any, hidden: Tensor, args: tuple, options: dict[str, Any]) -> _Loops | None:
    """The loops of `layer`, None unless they give what the layer gives for random tokens of the shape of `hidden`.

    That is found out in float32, by a copy: the rounding of 16 bits would hide other forms.
    """
    like = layer if hidden.dtype == torch.float32 else deepcopy(layer).float()
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)) * _NOISE
    plain, ours, original = _Recorder(len(hidden)), _Recorder(len(hidden)), super(FewTokensMixin, like)
    expected = original.forward(noise, *args, **options | {"landmark_call": plain})  # type: ignore[attr-defined]
    if not isinstance(expected, Tensor) or len(plain.asked) != 1:
        return None
    query, _, value, scoring = plain.asked[0]
    if scoring.sinks is not None or query.shape[-1] != value.shape[-1]:
        return None
    found = _Loops(like, scoring, query.shape[-1]).forward(noise, ours)
    pairs = zip((found, *ours.asked[0][:3]), (expected, *plain.asked[0][:3]), strict=True)
    if not all(close(one, other) for one, other in pairs):
        return None
    return _Loops(layer, scoring, query.shape[-1])
