"""Decoding on a GPU: a step of all layers is captured once as a CUDA graph, and then repeated by a single launch.

A step of decoding starts thousands of small operations, and starting them takes longer than computing them. A step over
tensors of fixed shape (`landmark.memory.fixed`) can be captured and repeated, with other numbers in the same tensors.
What stands around the layers stays as it is: checks of arguments, landmarks, the head, and counting what was read.
Blocks leave the window, and buffers grow, between steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from landmark.hf.cache import LandmarkCache
from landmark.hf.chunks import ChunkCall
from landmark.hf.compat import CACHE_NAMES
from landmark.hf.in_front import put_in_front, reduced
from landmark.hf.rope import Rope, close
from landmark.hf.unchanged import Unchanged
from landmark.memory import LayerMemory
from landmark.memory.blocks import Opened
from landmark.memory.fixed import FixedLayer, Places, attend_fixed, places_of
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.settings import ReadingSettings

_WIDTH = 2  # stream positions of a token and of the landmark behind it


class StepGraphMixin:
    """The forward of a base model that repeats a captured graph where that serves a step."""

    SIGNED = ("forward",)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(StepGraphMixin, self, super().__reduce_ex__(protocol))

    def forward(self, *args: Any, **options: Any) -> Any:
        base: Any = self
        call = options.get("landmark_call")
        if isinstance(call, ChunkCall) and call.cache.decode != "eager" and _is_step(call):
            call.cache.eager_reason = reason = _unserved(base, call, args, options)
            output = None if reason else _step(base, call, options)
            if output is not None:
                return output
            if call.cache.decode == "graph":
                raise ValueError(f'decode="graph" cannot be had: {call.cache.eager_reason}; or leave decode out')
        return super().forward(*args, **options)  # type: ignore[misc]


def serve_steps(base: nn.Module) -> None:
    """Puts `StepGraphMixin` in front of the class of a base model."""
    put_in_front(StepGraphMixin, base)


def _is_step(call: ChunkCall) -> bool:
    """Whether a call reads one more token of each row."""
    memory = call.cache.memory(-1)
    first = isinstance(memory, LayerMemory) and not memory.has_read
    return call.stream.positions.shape[1] == 1 and not first


def _unserved(base: Any, call: ChunkCall, args: tuple, options: dict[str, Any]) -> str | None:
    """Why a step is none that a graph can repeat, with the remedy; None if it is one."""
    device, reading = call.stream.positions.device, call.cache.settings.reading
    if not _has_graphs(device):
        return f"graphs are for CUDA devices, and the model is on {device}"
    known = {"input_ids", "position_ids", "landmark_call", "use_cache", *CACHE_NAMES}
    others = sorted(name for name, value in options.items() if name not in known and value is not None)
    if base.training or torch.is_grad_enabled():
        return "gradients are recorded, or the model is in training: decode under torch.no_grad() after model.eval()"
    if torch.is_autocast_enabled(device.type):
        return "autocast chooses dtypes anew in every step: load the model in the dtype to decode in"
    if args or others or "input_ids" not in options:
        return f"a graph is of token ids alone, without {', '.join(others) or 'embeddings'}: leave them out"
    if "sliding" in call.kinds:
        return "native sliding-window layers keep a KV cache that grows in every step: decode this model without graphs"
    if (
        reading.selection not in ("per_token_and_head", "per_group")
        or reading.miss_threshold
        or reading.positions != "stingy"
    ):
        return (
            'graphs read with selection="per_token_and_head" or "per_group", miss_threshold=0 and positions="stingy":'
            " set these, or decode without graphs"
        )
    if any(memory.on_search is not None for memory in _memories(call)):
        return "the search for blocks is being watched: decode without graphs meanwhile"
    return None


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def _memories(call: ChunkCall) -> list[LayerMemory]:
    return call.cache.memories  # type: ignore[return-value]  # no native sliding layers


def _step(base: Any, call: ChunkCall, options: dict[str, Any]) -> Any:
    """The output of `base` by a graph; None, with the reason at the cache, where the step has to be eager."""
    steps = _STEPS.get(call.cache)
    if steps is None or not steps.serves(base):
        steps = _STEPS[call.cache] = _Steps(base)
        if not steps.serves(base):
            call.cache.eager_reason = "a part of the model has a hook or a forward of its own: remove it"
            return None
    try:
        return steps.run(call, options["input_ids"], options["position_ids"])
    except _Eager as reason:
        call.cache.eager_reason = str(reason)
        return None


class _Eager(Exception):
    """Why a step is not repeated by a graph."""


class _Steps:
    """The graphs of one cache: one for each number of stream positions, over the same tensors."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self._parts = Unchanged(base)
        self._counts: list[int] = []
        self._layers: list[FixedLayer] = []
        self._rotations: dict[Rope, Rotation] = {}
        self._failure: _Eager | None = None
        self._graphs: dict[torch.Size, _Graph] = {}

    def serves(self, base: Any) -> bool:
        """Whether these are graphs of `base` as it is now."""
        return self._base is base and self._parts.current()

    def run(self, call: ChunkCall, ids: Tensor, positions: Tensor) -> Any:
        """Repeats a step over `ids [B,T]`; raises _Eager where it cannot, before anything has changed."""
        if self._failure is not None and call.cache.decode != "graph":
            raise self._failure  # every try takes as long as some steps
        memories, rotations = _memories(call), [call.rotations[rope] for rope in call.ropes]
        if memories[0].overdue:
            for memory, rotation in zip(memories, rotations, strict=True):
                memory.settle(rotation)
        moved = self._moved(memories)
        if moved and call.cache.decode != "graph":
            raise _Eager(
                "the buffers of the cache have moved since the step before, as they do when they grow, in"
                " forks and in beam search: the next step may be a graph"
            )
        valid = call.stream.rows
        counts = torch.tensor(memories[0].step_counts(valid, ids.shape[1], rotations[0]))
        if self._rotations is not call.rotations:
            self._rotations = call.rotations
            self._graphs.clear()
        graph = self._graphs.get(ids.shape) or self._capture(call, ids, positions, counts)
        return self._counted(call, memories, graph.repeated(ids, positions, counts), valid)

    def _capture(self, call: ChunkCall, ids: Tensor, positions: Tensor, counts: Tensor) -> "_Graph":
        settings = call.cache.settings
        step = _Step(self._base, self._layers, call.ropes, self._rotations, settings.reading, settings.stride)
        try:
            graph = self._graphs[ids.shape] = _Graph(step, ids, positions, counts)
        except Exception as error:  # libraries and kernels have errors of their own
            self._failure = _Eager(f"the layers of this model cannot be captured ({error})")
            raise self._failure from error
        return graph

    def _moved(self, memories: list[LayerMemory]) -> bool:
        """Whether the tensors of the cache are not those of the graphs, which are then dropped."""
        counts = memories[0].blocks_read
        same = bool(self._layers) and all(
            memory.holds(layer) for memory, layer in zip(memories, self._layers, strict=True)
        )
        if same and counts == self._counts:
            return False
        try:
            layers = [memory.fixed(_WIDTH) for memory in memories]
        except ValueError as error:
            raise _Eager(str(error)) from error
        moved = _addresses(layers) != _addresses(self._layers)
        if moved:
            self._graphs.clear()
        self._counts, self._layers = counts, layers
        return moved

    @staticmethod
    def _counted(call: ChunkCall, memories: list[LayerMemory], found: "_Result", valid: list[int]) -> Any:
        """The output of a step that was repeated, counted as read in every layer."""
        blocks = memories[0].blocks_read or valid
        asking = torch.tensor([new if count else 0 for new, count in zip(valid, blocks, strict=True)])
        for layer, memory in enumerate(memories):
            opened = None if found.opened is None else [x[layer] for x in found.opened]
            memory.count_step(valid, None if opened is None else Opened(opened[0], opened[1], opened[2], asking))
            if call.finite is not None:
                call.finite.watch_range(f"the keys or values of layer {layer}", found.ranges[layer])
            call.calls.append(layer)
        name = next((name for name in CACHE_NAMES if name in found.output.__dataclass_fields__), None)
        kept = {} if name is None else {name: call.cache}
        return type(found.output)(last_hidden_state=found.hidden, **kept)


_STEPS: WeakKeyDictionary[LandmarkCache, _Steps] = WeakKeyDictionary()


def _addresses(layers: list[FixedLayer]) -> list[tuple[int, torch.Size]]:
    return [(tensor.data_ptr(), tensor.shape) for layer in layers for tensor in layer.tensors]


@dataclass
class _FixedCall:
    """Attention call of one step over tensors of fixed shape; implements `landmark.hf.attention.AttentionCall`."""

    layers: list[FixedLayer]
    places: Places
    ropes: list[Rope]
    rotations: dict[Rope, Rotation]
    calls: list[int] = field(default_factory=list)
    opened: list[Any] = field(default_factory=list)
    ranges: list[Tensor] = field(default_factory=list)

    def rotates(self, layer: int) -> bool:
        return self.ropes[layer].style != "none"

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        rotation = self.rotations[self.ropes[layer]]
        out, opened = attend_fixed(
            self.layers[layer], self.places, query, key, value, rotation, scoring._replace(dropout=0.0)
        )
        padding = ~self.places.real[:, None, :, None]
        shown = [x.masked_fill(padding, 0.0) for x in (key, value)]
        self.ranges.append(torch.stack([end for x in shown for end in torch.aminmax(x)]))
        self.opened.append(opened)
        return out


@dataclass(frozen=True)
class _Result:
    """What a step gives: hidden states [B,T,C], the range of each layer's keys and values [L,4], and what it opened.

    `opened` are blocks and gates [L,B,H,T,k] and the weights of local attention [L,B,H,T]; None without blocks.
    """

    output: Any
    hidden: Tensor
    ranges: Tensor
    opened: tuple[Tensor, ...] | None


@dataclass(frozen=True)
class _Step:
    """All layers of a step, as operations on tensors of fixed shape."""

    base: Any
    layers: list[FixedLayer]
    ropes: list[Rope]
    rotations: dict[Rope, Rotation]
    settings: ReadingSettings
    stride: int

    def __call__(self, ids: Tensor, positions: Tensor, counts: Tensor) -> _Result:
        """One step over the stream `ids [B,T]`; `counts [B,6]` are `StepCounts`."""
        places = places_of(counts, ids.shape[1], self.settings, self.stride)
        call = _FixedCall(self.layers, places, self.ropes, self.rotations)
        plain: Any = super(StepGraphMixin, self.base)
        output = plain.forward(input_ids=ids, position_ids=positions, use_cache=False, landmark_call=call)
        opened = None
        if call.opened[0] is not None:
            opened = tuple(torch.stack(parts) for parts in zip(*call.opened, strict=True))
        given = [name for name, value in output.items() if value is not None]
        if given != ["last_hidden_state"]:
            raise ValueError(f"the model gives {', '.join(given)}: a graph is of hidden states alone")
        return _Result(output, output.last_hidden_state, torch.stack(call.ranges), opened)


class _Graph:
    """A captured step, with the tensors that it reads its numbers from."""

    def __init__(self, step: _Step, ids: Tensor, positions: Tensor, counts: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():  # the tensors are written to in every step
            self._numbers = ids.clone(), positions.clone(), counts.to(ids.device)
            self._replay, self._found = _captured(lambda: step(*self._numbers), ids.device)
        self._step = step  # keeps what the graph reads

    def repeated(self, ids: Tensor, positions: Tensor, counts: Tensor) -> _Result:
        """The step over other numbers."""
        for mine, new in zip(self._numbers, (ids, positions, counts), strict=True):
            mine.copy_(new, non_blocking=True)
        self._replay()
        found = self._found
        # The next step writes to the same tensors.
        opened = None if found.opened is None else tuple(x.clone() for x in found.opened)
        return _Result(found.output, found.hidden.clone(), found.ranges.clone(), opened)


def _captured(step: Callable[[], _Result], device: torch.device) -> tuple[Callable[[], None], _Result]:
    """A CUDA graph of `step`, as a function that repeats it, and the tensors that it writes to.

    Steps with the same numbers write the same to the cache, however often they are computed. Raises RuntimeError where
    an operation cannot be captured, or where the graph gives something else than the operations.
    """
    with torch.cuda.device(device):
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):  # kernels are tuned and libraries start up outside of the graph
            expected = step().hidden
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = step()
        graph.replay()
    if not close(found.hidden, expected):
        raise RuntimeError("the captured step gives other numbers")
    return graph.replay, found
