"""Compiled loops on a CPU, on as many threads as torch uses."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import torch

_WORTH_A_THREAD = 256  # items; handing over fewer takes longer than doing them


def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a loop over arrays at its first call; the result is kept on disk for the next process.

    Sums may be reordered, as in any matrix product; infinities and NaN keep their meaning.
    """
    return numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})(loop)


def in_parts(work: Callable[[int, int], None], count: int) -> None:
    """Calls `work(start, stop)` over 0..count in equal parts, one for each of torch's threads.

    `work` must release the interpreter's lock, as `compiled` loops do.
    """
    threads = min(torch.get_num_threads(), count // _WORTH_A_THREAD)
    if threads < 2:
        work(0, count)
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    parts = [_pool(threads).submit(work, *span) for span in pairwise(bounds)]
    for part in parts:
        part.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="landmark")


# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
