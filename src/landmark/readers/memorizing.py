"""Memorizing Transformer: one layer also attends to its nearest keys among all earlier segments."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from landmark.hf import from_pretrained
from landmark.hf.calls import Reader
from landmark.hf.config import text_config
from landmark.index.exact import ExactIndex
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.readers.recurrent import causal_attention

# The initial weight of the memory is an eighth: little harm to a pretrained model, and enough gradient.
_FIRST_GATE = -2.0


class Memorizing(Reader):
    """Causal attention within segments of `segment` tokens, and kNN memory of all earlier segments in one layer.

    In `layer` each head attends to the `retrieve` nearest keys of all earlier segments, found by exact search, and
    gates the result with its local attention: `g * memory + (1 - g) * local`, g the sigmoid of a learned number per
    head (Wu et al. 2022, section 3). Keys and queries of the memory have no positions; only the queries and g get
    gradients. The first segment has no memory.

    Nearest is by inner product, scaled as in the layer. The paper normalizes keys and queries, because its memory
    outlives many updates of the parameters. Here it lives for one text and one state of the parameters.

    The gates are those of `add_memory_gates`. Raises ValueError for invalid settings, and if `layer` has no gates.
    """

    def __init__(self, segment: int, retrieve: int, layer: int) -> None:
        super().__init__(segment)
        if retrieve < 1:
            raise ValueError(f"retrieve is {retrieve}: give 1 or more keys for a query to attend to")
        self.retrieve = retrieve
        self.layer = layer
        self._memory: _Memory | None = None

    def reach(self, width: int) -> int:
        return width

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        positions = torch.arange(key.shape[2], device=key.device)
        out = causal_attention(rotation.apply(query, positions), rotation.apply(key, positions), value, s)
        if module.layer_idx != self.layer:
            return out
        gate = getattr(module, "memory_gate", None)
        if gate is None:
            raise ValueError(f"layer {self.layer} has no memory gate: call add_memory_gates(model, {self.layer}) first")
        if self._memory is None:
            self._memory = _Memory(key)
        else:
            found = self._memory.attend(query, self.retrieve, s).to(out.dtype)
            out = torch.lerp(out, found, gate.sigmoid().to(out.dtype)[:, None, None])
        self._memory.extend(key, value)
        return out


class _Memory:
    """Keys and values of all earlier segments in one layer, without positions and without gradient."""

    def __init__(self, like: Tensor) -> None:
        self._index = ExactIndex(len(like))
        self._values = like.detach()[:, :, :0]

    def extend(self, key: Tensor, value: Tensor) -> None:
        """Adds keys and values `[B,Hkv,T,D]`."""
        for row, own in enumerate(key.detach().to(working_dtype(key))):
            self._index.append(row, own)
        # Not in place: the graph of an earlier segment may need the old tensor.
        self._values = torch.cat((self._values, value.detach()), dim=2)

    def attend(self, query: Tensor, retrieve: int, s: Scoring) -> Tensor:
        """Attention of `query [B,H,T,D]`, before rotary, to its nearest keys; shaped like it."""
        rows, kv_heads, count, _ = self._values.shape
        scaled = query.to(working_dtype(query)) * s.scale_of(query)
        scores, numbers = self._index.search(scaled.detach(), min(retrieve, count), [count] * rows)
        heads = torch.arange(rows * kv_heads, device=query.device).view(rows, kv_heads, 1, 1, 1)
        found = (numbers.unflatten(1, (kv_heads, -1)) + heads * count).view(-1, numbers.shape[-1])
        scores = scores.view(found.shape)
        if torch.is_grad_enabled():
            every = torch.arange(count, device=query.device).expand(rows, -1)
            scores = _FoundScores.apply(scaled, scores, self._index.keys(every).flatten(0, 2), found)
        weights = torch.nn.functional.dropout(s.cap(scores).softmax(-1), s.dropout)
        return _averages(weights, self._values.flatten(0, 2).to(weights.dtype), found).view(query.shape)


class _FoundScores(torch.autograd.Function):
    """The scores `[N,k]` of a search, for the keys at `rows [N,k]` of `keys [S,D]`, differentiable in the N queries."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, scores: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(keys, rows)
        ctx.shape = query.shape
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        keys, rows = ctx.saved_tensors
        return _averages(grad_outputs[0], keys, rows).view(ctx.shape), None, None, None


def _averages(weights: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Weighted sums `[N,D]` of rows of `table [S,D]`, with `rows` and `weights [N,k]`; copies no row."""
    return torch.nn.functional.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def memory_layer(layers: int) -> int:
    """The default layer of the memory: at three quarters of the depth, as the paper's ninth of twelve."""
    return max(1, 3 * layers // 4) - 1


def add_memory_gates(model: Any, layer: int | None = None) -> Any:
    """Adds the gates of `Memorizing` to one layer of a converted `model`, a learned number per head; returns the model.

    The parameter `memory_gate [H]` of the layer's attention is saved with the model, and `landmark_memory_layer` in its
    configuration names the layer. Existing gates are kept. Raises ValueError for a layer that the model does not have,
    or if another layer has gates.
    """
    config: Any = text_config(model.config)
    there = getattr(config, "landmark_memory_layer", None)
    default: int = memory_layer(config.num_hidden_layers) if there is None else there
    layer = default if layer is None else layer
    if there not in (None, layer):
        raise ValueError(f"layer {there} of this model has memory gates, and one layer can have them: not {layer} too")
    if not 0 <= layer < config.num_hidden_layers:
        raise ValueError(f"layer is {layer}: this model has layers 0 to {config.num_hidden_layers - 1}")
    # A decoder layer may have a layer_idx too; its attention is the innermost module.
    *_, attention = (m for m in model.base_model.modules() if getattr(m, "layer_idx", None) == layer)
    if not hasattr(attention, "memory_gate"):
        like = next(attention.parameters())
        gates = torch.full((config.num_attention_heads,), _FIRST_GATE, dtype=like.dtype, device=like.device)
        attention.memory_gate = nn.Parameter(gates)
    config.landmark_memory_layer = layer
    return model


def load_with_gates(path: str | PathLike[str], **options: Any) -> Any:
    """`landmark.from_pretrained`, and the memory gates of a model that was saved with them in the folder `path`.

    transformers reports the gates as unexpected, before they are read. Raises ValueError, besides what that does, when
    the folder lacks the gates that its configuration names.
    """
    model = from_pretrained(path, **options)
    config = text_config(model.config)
    layer = getattr(config, "landmark_memory_layer", None)
    if layer is None:
        return model
    saved = _saved_gates(Path(path))
    gates: Tensor = next(p for name, p in add_memory_gates(model).named_parameters() if name.endswith(".memory_gate"))
    gates.data.copy_(saved)
    return model


def _saved_gates(folder: Path) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                if name.endswith(".memory_gate"):
                    return tensors.get_tensor(name)
    raise ValueError(f"{folder} names memory gates and holds none: save the model there again, with its gates")
