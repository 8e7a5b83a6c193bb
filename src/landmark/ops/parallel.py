"""Work on a CPU shared among the threads of OpenMP that torch computes with.

Threads of our own would stand beside torch's. These spin for some milliseconds after each of its operations, and more
threads than cores wait for each other. While they spin, they start within a microsecond. `in_parts` shares a call of
Python, `share` a call within compiled code, where nothing waits for the interpreter. Where torch has another runtime,
as it may on macOS, and in forked processes, `in_parts` starts threads of its own, and `share` does all in one part.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORTH_A_THREAD = 256  # small pieces of work; handing fewer to another thread takes longer than the work
_PARTS_OF_A_THREAD = 4  # of equal size, and not of equal time
_WORTH_A_PART = 256  # the same within compiled code: of pieces that take some 20 nanoseconds each

_intrinsic: Any = intrinsic  # what it decorates takes one argument less in compiled code
_INDEX, _INT, _POINTER = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
# void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags): GCC's interface, which
# LLVM's OpenMP has as well. A team of another size than before would make new threads, so it is always the same.
_PARALLEL, _ALL = "GOMP_parallel", 0
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_parallel: Any = getattr(ctypes.CDLL(None), _PARALLEL, None)  # torch has loaded it
_threads_in_region: Any = getattr(ctypes.CDLL(None), "omp_get_num_threads", None)
if _parallel is not None:
    _parallel.argtypes, _parallel.restype = (_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
# Compiled code finds it by this name. Where there is none it is never called.
llvm.add_symbol(_PARALLEL, ctypes.cast(_parallel or ctypes.CDLL(None).abort, ctypes.c_void_p).value)


def _forget_openmp() -> None:
    global _parallel
    _parallel = None


os.register_at_fork(after_in_child=_forget_openmp)  # OpenMP would wait for threads of the parent


def in_parts(work: Callable[[int, int], None], count: int, size: float = 1) -> None:
    """Calls `work(start, stop)` on equal parts of 0..count, a few for each of the threads.

    `size` is how many small pieces of work each of the `count` is, such as queries that meet a block. `work` must
    release the GIL, as `compiled` loops do.
    """
    team = torch.get_num_threads()
    parts = min(_PARTS_OF_A_THREAD * team, count, int(count * size) // _WORTH_A_THREAD)
    if team == 1 or parts < 2:
        work(0, count)
        return
    spans = iter([(count * part // parts, count * (part + 1) // parts) for part in range(parts)])
    errors: list[BaseException] = []
    ended: list[int] = []

    def take(_: Any = None) -> None:
        try:
            for span in spans:
                work(*span)
            ended.append(_team_size())
        except BaseException as error:  # OpenMP's caller would lose it
            errors.append(error)

    if _parallel is not None:
        _parallel(_WORK(take), None, team, 0)
        # What a signal raises before `take` can keep it is lost: then fewer threads came to the end than there were.
        if not errors and len(ended) < max(ended, default=1):
            raise KeyboardInterrupt
    else:
        _in_own_threads(take, team)
    if errors:
        raise errors[0]


def _team_size() -> int:
    """Threads of the region that calls it; OpenMP may give fewer than it was asked for."""
    return 1 if _threads_in_region is None else _threads_in_region()


def _in_own_threads(take: Callable[[], None], team: int) -> None:
    """Calls `take` in so many new threads, and waits for all that started, also when it is interrupted."""
    threads = [threading.Thread(target=take) for _ in range(team)]
    try:
        for thread in threads:
            thread.start()
    finally:
        interrupted: BaseException | None = None
        while started := [thread for thread in threads if thread.is_alive()]:
            try:
                started[0].join()
            except BaseException as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted


def parts_of(pieces: int) -> int:
    """Parts in which `share` does so many small pieces of work: a query meets a key, a kilobyte of weights is read."""
    team = torch.get_num_threads() if _parallel is not None else 1
    return max(1, min(team, pieces // _WORTH_A_PART))


@_intrinsic
def share(typing: Any, loop: Any, args: Any, count: Any, parts: Any) -> Any:
    """Calls the compiled `loop(*args, start, stop)` on equal `parts` of 0..count; in compiled code only.

    With one part nothing is shared. Parts are computed by the same code, however many they are.
    """
    called = loop.get_call_type(typing, (*args.types, types.int64, types.int64), {})

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _, given, count, parts = arguments
        compiled = loop.dispatcher.get_compile_result(called)
        context.active_code_library.add_linking_library(compiled.library)
        # What the parts take: arguments, count, parts, the next part, whether one failed.
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([given.type, *[_INDEX] * 4]))
        for number, value in enumerate((given, count, parts, _INDEX(0), _INDEX(0))):
            builder.store(value, cgutils.gep_inbounds(builder, shared, 0, number))
        work = _taking_parts(context, builder.module, shared.type, compiled.fndesc, called)
        raw = builder.bitcast(shared, _POINTER)
        with builder.if_else(builder.icmp_signed("<", parts, _INDEX(2))) as (alone, together):
            with alone:
                builder.call(work, [raw])
            with together:
                builder.call(_parallel_in(builder.module, work.type), [work, raw, _INT(_ALL), _INT(0)])
        failed = builder.load(cgutils.gep_inbounds(builder, shared, 0, 4))
        with cgutils.if_unlikely(builder, cgutils.is_not_null(builder, failed)):
            context.call_conv.return_user_exc(builder, RuntimeError, ("a compiled loop failed in one of its parts",))
        return context.get_dummy_value()

    return types.void(loop, args, types.int64, types.int64), generate


def _taking_parts(context: Any, module: ir.Module, shared: ir.PointerType, loop: Any, called: Any) -> ir.Function:
    """A function of `shared` that takes one part after another, as long as there are some, and calls `loop`."""
    kind = ir.FunctionType(ir.VoidType(), [_POINTER])
    work = ir.Function(module, kind, module.get_unique_name("landmark_parts"))
    work.linkage = "internal"
    builder = ir.IRBuilder(work.append_basic_block())
    whole = builder.bitcast(work.args[0], shared)
    given, count, parts, taken, failed = (cgutils.gep_inbounds(builder, whole, 0, number) for number in range(5))
    args, count, parts = cgutils.unpack_tuple(builder, builder.load(given)), builder.load(count), builder.load(parts)
    again, one, end = (work.append_basic_block() for _ in range(3))
    builder.branch(again)
    builder.position_at_end(again)
    part = builder.atomic_rmw("add", taken, _INDEX(1), "seq_cst")
    builder.cbranch(builder.icmp_signed("<", part, parts), one, end)
    builder.position_at_end(one)
    span = (builder.sdiv(builder.mul(count, x), parts) for x in (part, builder.add(part, _INDEX(1))))
    status, _ = context.call_internal_no_propagate(builder, loop, called, [*args, *span])
    with cgutils.if_unlikely(builder, status.is_error):
        builder.store(_INDEX(1), failed)
    builder.branch(again)
    builder.position_at_end(end)
    builder.ret_void()
    return work


def _parallel_in(module: ir.Module, work: ir.Type) -> ir.Function:
    """OpenMP's function in a module."""
    kind = ir.FunctionType(ir.VoidType(), [work, _POINTER, _INT, _INT])
    return cgutils.get_or_insert_function(module, kind, _PARALLEL)
