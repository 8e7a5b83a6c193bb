"""The state of a commit: one file of safetensors, and what its metadata says about the other files."""

import math
import mmap
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from landmark.contexts import fields
from landmark.contexts.fields import Malformed
from landmark.contexts.manifest import Manifest, to_json

_METADATA = "metadata"  # the state's one entry in the metadata that safetensors allows: JSON
_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_TYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
_TYPES |= {"U8": torch.uint8, "BOOL": torch.bool}
_DTYPES = {dtype: name for name, dtype in _TYPES.items()}
_LENGTH = 8  # bytes in front of the header, with its length


def encode_state(tensors: Mapping[str, Tensor], metadata: Any) -> bytes:
    """The file of a state: safetensors. Raises ValueError if `metadata` has no JSON form."""
    # Copies, because safetensors refuses tensors that share memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return safetensors.torch.save(copies, {_METADATA: to_json(metadata, "the state's metadata")})


def decode_state(data: mmap.mmap | bytearray, manifest: Manifest) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state's file, which lie in `data` itself, and its metadata.

    Raises Malformed if it is none, or does not go with the blocks and tokens that the manifest counts.
    """
    header, first = _header(data), _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    metadata = _checked_metadata(header, manifest)
    with torch.inference_mode(False):  # so that they stay writable
        return {name: _tensor(data, first, value, name) for name, value in header.items()}, metadata


def check_state(data: mmap.mmap | bytearray, manifest: Manifest) -> None:
    """Raises Malformed as `decode_state` does, for what the header says."""
    _checked_metadata(_header(data), manifest)


def _tensor(data: mmap.mmap | bytearray, first: int, value: Any, name: str) -> Tensor:
    entry = fields.fields(value, name, ("dtype", "shape", "data_offsets"))
    dtype = _TYPES.get(fields.text(entry["dtype"], f"{name}: dtype"))
    if dtype is None:
        raise Malformed(f"{name} has the dtype {entry['dtype']!r}, and a state has {', '.join(_TYPES)}"[:300])
    shape = [fields.whole(size, f"{name}: shape") for size in fields.items(entry["shape"], f"{name}: shape", 64)]
    start, stop = (fields.whole(at, name) for at in fields.items(entry["data_offsets"], name, 2, least=2))
    huge = math.prod(max(size, 1) for size in shape) > fields.LARGEST  # beside a size of 0
    if huge or stop - start != math.prod(shape) * dtype.itemsize or first + stop > len(data):
        raise Malformed(f"{name} has bytes {start} to {stop} of the state, which do not hold {shape} of {dtype}"[:300])
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    begin = first + start
    if begin % dtype.itemsize:
        return torch.frombuffer(bytearray(data[begin : first + stop]), dtype=dtype).view(shape)
    return torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=begin).view(shape)


def _checked_metadata(header: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """The metadata in the header, out of which they are taken."""
    entry = fields.mapping(header.pop("__metadata__", None), "the state's metadata").get(_METADATA)
    metadata = fields.parse(fields.text(entry, "the state's metadata").encode(), "the state's metadata")
    if not metadata and manifest.blocks:
        raise Malformed(f"the manifest counts {manifest.blocks} blocks, and the state is of a cache that read nothing")
    if "layers" in metadata:  # a KV cache (`landmark.hf.cache_state.cache_state`); another program's is its own
        _check_cache(metadata, header, manifest)
    return metadata


def _header(data: mmap.mmap | bytearray) -> dict[str, Any]:
    """The JSON object with which safetensors begin: dtype and shape of each tensor."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > len(data) - _LENGTH:
        raise Malformed("the state is no safetensors: its header does not end")
    return fields.parse(data[_LENGTH : _LENGTH + length], "the state's header")


def _check_cache(metadata: dict[str, Any], tensors: dict[str, Any], manifest: Manifest) -> None:
    layers, shapes = fields.mapping(metadata["layers"], "layers"), manifest.layout.blocks
    if len(layers) != len(shapes):
        raise Malformed(f"the manifest counts {len(shapes)} layers with blocks, and the state {len(layers)}")
    tokens = _only(metadata.get("tokens"), "tokens")
    for (layer, value), shape in zip(layers.items(), shapes, strict=True):
        saved = fields.fields(value, f"layer {layer}", ("lengths", "seen"))
        seen, length = (_only(saved[name], f"layer {layer}: {name}") for name in ("seen", "lengths"))
        if seen - length != manifest.blocks * shape.stride:
            raise Malformed(
                f"the manifest counts {manifest.blocks} blocks, and layer {layer} of the state {seen - length} "
                f"positions of {shape.stride} a block"
            )
        for name, width in (("keys", shape.key_dim), ("turned", shape.key_dim), ("values", shape.value_dim)):
            tensor = fields.mapping(tensors.get(f"{layer}.{name}"), f"layer {layer}: {name}")
            found, expected = (tensor.get("dtype"), tensor.get("shape")), [1, shape.heads, length, width]
            if found != (_DTYPES[shape.dtype], expected):
                raise Malformed(f"the manifest has {shape}, and layer {layer} of the state {name} {list(found)}"[:300])
        if tokens != seen - seen // shape.stride:  # without landmarks
            raise Malformed(f"the state's cache read {tokens} tokens, and layer {layer} {seen} positions")
    if tokens > manifest.token_count:
        raise Malformed(f"the manifest counts {manifest.token_count} tokens, and the state's cache read {tokens}")


def _only(value: Any, what: str) -> int:
    """The number of the one row that a context has."""
    (number,) = fields.items(value, what, 1, least=1)
    return fields.whole(number, what)
