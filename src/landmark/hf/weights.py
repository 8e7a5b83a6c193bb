"""Hashes of weights: of every byte, made once and kept while the bytes stay what they are."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_ROW = 512  # words of 8 bytes
_PIECE_BYTES = 64 << 20  # weights on a GPU come over in pieces, so that they take little memory here

_kept = WeakTensorKeyDictionary()  # of each tensor: what it looked like when it was hashed, and its hash


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor, with its shape and number type, under the same names.

    Hashes are kept. Whether a tensor is still what was hashed is not taken from its version alone, which writing
    through `.data` or NumPy does not change: sums over all its bytes are compared, which takes a third of the time.

    Raises ValueError for tensors without data (on the meta device, or offloaded).
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} has no data here (meta device, or offloaded): load the model's weights first")
    different = {id(tensor): tensor for tensor in tensors.values()}  # tied weights have several names
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # hashing holds no lock of the interpreter
        found = dict(zip(different, threads.map(_hash, different.values()), strict=True))
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def _hash(tensor: Tensor) -> str:
    data = _bytes(tensor)
    look = (None if tensor.is_inference() else tensor._version, _sums(data))
    kept = _kept.get(tensor)
    if kept is None or kept[0] != look:
        kept = look, _sha256(data, f"{tensor.dtype} {list(tensor.shape)}")
        _kept[tensor] = kept
    return kept[1]


def _bytes(tensor: Tensor) -> Tensor:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return data.clone() if data.storage_offset() % 8 else data  # words of 8 bytes must be aligned


def _sums(data: Tensor) -> bytes:
    """Sums of all words, along and across: a changed byte changes two of them, and so do bytes that change places."""
    words = data[: len(data) // (8 * _ROW) * (8 * _ROW)].view(torch.int64).view(-1, _ROW)
    digest = hashlib.sha256()
    for part in (words.sum(0), words.sum(1), data[8 * words.numel() :]):
        digest.update(part.cpu().numpy().data)
    return digest.digest()


def _sha256(data: Tensor, what: str) -> str:
    digest = hashlib.sha256(what.encode())
    for piece in data.split(_PIECE_BYTES):
        digest.update(piece.cpu().numpy().data)
    return digest.hexdigest()
