"""What a new context begins with, and the KV cache over a context."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from landmark.contexts.compatibility import entry_of, header
from landmark.contexts.disk import Damage, Progress
from landmark.contexts.manifest import Layout
from landmark.contexts.resident import brought
from landmark.contexts.snapshot import Snapshot
from landmark.contexts.storage import ContextStorage, index_prefix
from landmark.contexts.writer import Writer
from landmark.hf import LandmarkCache, read
from landmark.hf.cache import CacheOptions
from landmark.hf.cache_state import resume_cache
from landmark.hf.config import landmark_settings, layer_budgets, layer_kinds, text_config
from landmark.index.options import IndexKind, IndexOptions, index_options
from landmark.memory import LayerMemory
from landmark.memory.storage import Budgets
from landmark.memory.window import WindowState
from landmark.settings import KvDtype, LandmarkSettings, ReadingChanges
from landmark.store.base import BlockShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_HOST_BUDGET = "256MB"


def beginning(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", **options: Unpack[CacheOptions]
) -> tuple[dict[str, Any], Layout]:
    """Header and layout of a new context.

    Raises ValueError for options under which it would keep nothing or could not be read, before anything is made.
    """
    settings = LandmarkCache(model.config, **options).settings
    _check_keeps(settings)
    begun = header(model, tokenizer, settings), layout(model, options.get("kv_dtype"))
    check_memory(*begun, model.config, **options)
    return begun


def _check_keeps(settings: LandmarkSettings) -> None:
    """Raises ValueError for settings of a writer under which no blocks are kept, and the context would lack them."""
    if not settings.reading.retrieve:
        raise ValueError("retrieve is 0: no blocks are kept, so that there is nothing to save; write with 1 or more")


def layout(model: "PreTrainedModel", kv_dtype: KvDtype | None = None) -> Layout:
    """Shapes of the blocks and landmark keys of every landmark layer, taken from a forward of one token.

    Blocks will be kept in `kv_dtype`.
    """
    token = int(landmark_settings(model.config).landmark_id == 0)  # any but the landmark
    cache = read(model, [token], LandmarkCache(model.config, allow_nonfinite=True))  # numbers do not matter here
    stride, blocks = cache.settings.stride, []
    for memory in cache.memories:
        if isinstance(memory, LayerMemory):
            window, _ = memory.state()
            heads, key_dim, value_dim = window.keys.shape[1], window.keys.shape[3], window.values.shape[3]
            blocks.append(BlockShape(heads, stride, key_dim, value_dim, window.keys.dtype))
    return Layout(tuple(blocks), tuple((shape.heads, shape.key_dim) for shape in blocks), kv_dtype)


def cache_of(
    snapshot: Snapshot,
    model: "PreTrainedModel",
    *,
    index: IndexKind | IndexOptions = "auto",
    host_budget: int | str | None = None,
    device_budget: int | str | None = None,
    kv_dtype: KvDtype | None = None,
    progress: Progress | None = None,
    **reading: Unpack[ReadingChanges],
) -> LandmarkCache:
    """A cache that continues the context; settings that are given replace those with which it was read.

    A `kv_dtype` must be that in which the context keeps its blocks: raises ValueError. `progress` is that of `brought`.
    """
    options = index_options(index)
    config = text_config(model.config)
    settings = _settings(snapshot.header, config, reading)
    if isinstance(snapshot, Writer):
        _check_keeps(settings)
    layers = [layer for layer, kind in enumerate(layer_kinds(config)) if kind == "landmark"]
    _check_layout(snapshot, len(layers), settings.stride)
    budgets = _budgets(config, settings, host_budget, device_budget, _kept_in(snapshot.layout, kv_dtype))
    tensors, metadata = snapshot.state()  # says how many blocks there are, before memory is taken for them
    keys, resident = snapshot.landmark_buffers(), brought(snapshot, budgets, model.device, progress)
    storages = {
        layer: ContextStorage(
            snapshot,
            column,
            keys[column],
            _under(tensors, index_prefix(column)),
            options=options,
            budgets=budgets,
            resident=resident[column],
        )
        for column, layer in enumerate(layers)
    }
    del keys
    cache = LandmarkCache(model.config, storage=storages, **asdict(settings.reading))
    if metadata:
        _resume(cache, tensors, metadata, snapshot, model.device)
    elif snapshot.blocks:
        _begin_behind(cache, snapshot, model.device)
    return cache


def _begin_behind(cache: LandmarkCache, snapshot: Snapshot, device: Any) -> None:
    """Lets the cache begin behind the blocks of a collection, with nothing in its local windows."""
    layers = [memory for memory in cache.memories if isinstance(memory, LayerMemory)]
    for memory, shape in zip(layers, snapshot.layout.blocks, strict=True):
        keys, values = (
            torch.zeros(1, shape.heads, 0, width, dtype=shape.dtype, device=device)
            for width in (shape.key_dim, shape.value_dim)
        )
        memory.resume(WindowState(keys, values, keys, [0]), [snapshot.blocks * shape.stride], [snapshot.blocks])
    cache.resume(torch.tensor([snapshot.blocks * snapshot.layout.block_size], device=device))


def _resume(
    cache: LandmarkCache, tensors: dict[str, Tensor], metadata: dict[str, Any], snapshot: Snapshot, device: Any
) -> None:
    """Restores the state of the cache; Damage if it is that of another program."""
    try:
        resume_cache(cache, tensors, metadata, snapshot.blocks, device)
    except (LookupError, TypeError, RuntimeError) as error:
        what = f"has a state that this model cannot go on from ({type(error).__name__}: {str(error)[:80]!r})"
        raise Damage(snapshot.path, what) from error


def _check_layout(snapshot: Snapshot, layers: int, stride: int) -> None:
    """Raises Damage if the manifest has blocks of other layers, or of another length, than the model that read it."""
    shapes = snapshot.layout.blocks
    if len(shapes) != layers or any(shape.stride != stride for shape in shapes):
        found = f"{len(shapes)} layers of {sorted({shape.stride for shape in shapes})} positions a block"
        raise Damage(snapshot.path, f"has {found}, and its model {layers} of {stride}")


def check_memory(
    header: dict[str, Any],
    layout: Layout,
    config: "PretrainedConfig",
    *,
    index: IndexKind | IndexOptions = "auto",
    host_budget: int | str | None = None,
    device_budget: int | str | None = None,
    kv_dtype: KvDtype | None = None,
    **reading: Unpack[ReadingChanges],
) -> LandmarkCache:
    """An empty cache that reads as the context will be read.

    Raises ValueError for bad settings, indexes and budgets, or budgets too small for a query, before a model is loaded,
    and for a `kv_dtype` other than that in which the context keeps its blocks. `header` and `layout` are those of the
    context, `config` that of the model.
    """
    text = text_config(config)
    settings = _settings(header, text, reading)
    budgets = _budgets(text, settings, host_budget, device_budget, _kept_in(layout, kv_dtype))
    for shape in layout.blocks:
        budgets.check(shape)
    return LandmarkCache(config, index=index, **asdict(settings.reading))


def _kept_in(layout: Layout, kv_dtype: KvDtype | None) -> KvDtype | None:
    """The dtype in which a context keeps its blocks below the device; ValueError for another one."""
    if kv_dtype not in (None, layout.kv_dtype):
        kept = layout.kv_dtype or layout.fields["blocks"][0][-1]
        raise ValueError(
            f"kv_dtype is {kv_dtype!r}, and the context keeps its blocks in {kept}: leave kv_dtype out, or read the"
            " text again into a new one"
        )
    return layout.kv_dtype


def _settings(header: dict[str, Any], config: "PretrainedConfig", reading: ReadingChanges) -> LandmarkSettings:
    """The settings with which the context was read, changed by `reading`; ValueError for what cannot change."""
    kept = LandmarkSettings.from_dict(entry_of(header, "settings")).reading
    changed = kept.changed(**reading)
    if changed.positions != kept.positions:
        raise ValueError(
            f"positions is {changed.positions!r}, and the context was read with {kept.positions!r}: leave positions out"
        )
    if changed.max_blocks is not None:
        raise ValueError(f"max_blocks is {changed.max_blocks}: a context keeps all blocks; leave max_blocks out")
    return replace(landmark_settings(config), reading=changed)


def _budgets(
    config: "PretrainedConfig",
    settings: LandmarkSettings,
    host_budget: int | str | None,
    device_budget: int | str | None,
    kv_dtype: KvDtype | None,
) -> Budgets:
    host_budget = DEFAULT_HOST_BUDGET if host_budget is None else host_budget
    return layer_budgets(settings, config, host_budget, device_budget, kv_dtype)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
