"""The commands of `python -m benchmarks`: check options, run, print rows, tables and plots."""

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.options import (
    ComparisonOptions,
    DecodeOptions,
    GpuOptions,
    GrowthOptions,
    IndexSearchOptions,
    LaptopOptions,
    LaunchesOptions,
    LongAskOptions,
    LongDecodeOptions,
    LongReadOptions,
    OpsOptions,
    ParallelOptions,
    ReadOptions,
    ReliabilityOptions,
    RowOptions,
    ServeLoadOptions,
    ServeTrialsOptions,
    TierDiskOptions,
    TierInt8Options,
    TierOverlapOptions,
    TierReadersOptions,
    TierReadOptions,
    ViewPageOptions,
    WeightsOptions,
)
from landmark.cli.options import whole_numbers
from landmark.cli.output import figure_text, print_table, tokens_read

Row = dict[str, Any]

# Comparisons of methods in rounds.

FIGURES = ("method", "ms", "quartiles", "ratio", "extra MB", "kept MB", "roofline ms", "x roofline", "note")


def run_ops(options: OpsOptions) -> int:
    """Attention as an operation."""
    options.check()
    lengths = None if options.lengths is None else whole_numbers("lengths", options.lengths)
    _check_plot(options)
    from benchmarks import ops
    from benchmarks.machine import prepare

    names = ops.methods(options)
    cases = ops.cases(options, lengths)
    machine = prepare(options)
    rows = []
    with tokens_read("ops", len(cases) * 2 * (options.rounds + 1)) as progress:
        for case in cases:
            for row in ops.run(machine, case, names, options.rounds, progress):
                rows.append(row)
                _emit(options, row)
    _show(options, rows, ("case", "pass"), [column for column in FIGURES if column != "kept MB"])
    return 0


def run_read(options: ReadOptions) -> int:
    """Prefill of chunks of a long text."""
    options.check()
    contexts = whole_numbers("contexts", options.contexts)
    _check_plot(options)
    from benchmarks import read
    from benchmarks.machine import prepare
    from benchmarks.models import model_pair

    machine = prepare(options)
    pair = model_pair(options, machine, read.LAYERS)
    read.check(pair, options, contexts)
    rows = []
    with tokens_read("read", len(contexts) * (options.rounds + 1)) as progress:
        for context in contexts:
            for row in read.run(machine, pair, options, context, progress):
                rows.append(row)
                _emit(options, row)
    _show(options, rows, ("context", "blocks"), ("method", "tokens/s", *FIGURES[1:]))
    return 0


def run_decode(options: DecodeOptions) -> int:
    """Decoding, one token after another."""
    options.check()
    contexts = whole_numbers("contexts", options.contexts)
    batch_sizes = whole_numbers("batch_sizes", options.batch_sizes)
    _check_plot(options)
    from benchmarks import decode
    from benchmarks.machine import prepare
    from benchmarks.models import model_pair

    decode.chosen(options)
    machine = prepare(options)
    pair = model_pair(options, machine, decode.LAYERS)
    rows = []
    with tokens_read("decode", len(contexts) * len(batch_sizes) * (options.rounds + 1)) as progress:
        for batch in batch_sizes:
            for context in contexts:
                for row in decode.run(machine, pair, options, context, batch, progress):
                    rows.append(row)
                    _emit(options, row)
    _show(options, rows, ("context", "batch"), FIGURES)
    return 0


def run_launches(options: LaunchesOptions) -> int:
    """Launches and synchronisations of a chunk and a step."""
    options.check()
    contexts = whole_numbers("contexts", options.contexts)
    if options.plot is not None:
        raise ValueError("counts are not plotted: leave --plot out")
    from benchmarks import launches
    from benchmarks.machine import prepare
    from benchmarks.models import model_pair

    machine = prepare(options)
    pair = model_pair(options, machine, launches.LAYERS)
    rows = []
    with tokens_read("launches", 4 * len(contexts)) as progress:
        for context in contexts:
            for row in launches.run(machine, pair, options, context, progress):
                rows.append(row)
                _emit(options, row)
    if not options.json:
        counts = ("launches", "synchronisations", "host_reads", "operations", "device_s", "seconds")
        print_table(rows, ("context", "method", "what", "tokens", *counts))
    return 0


def run_index(options: IndexSearchOptions) -> int:
    """Search through landmark keys."""
    options.check()
    sizes = whole_numbers("blocks", options.blocks)
    queries = whole_numbers("queries", options.queries)
    _check_plot(options)
    from benchmarks import index
    from benchmarks.landmark_keys import TOKENS, landmarks_of_book
    from benchmarks.machine import prepare

    chosen = index.methods(options.methods)
    machine = prepare(options)
    with tokens_read("reading the text of the keys", TOKENS) as progress:
        landmarks = landmarks_of_book(progress=progress)
    rows = []
    steps = len(sizes) * (len(chosen) + len(queries) * (options.rounds + 1))
    with tokens_read("building and searching indexes", steps) as progress:
        for blocks in sizes:
            for row in index.run(machine, landmarks, blocks, queries, chosen, options.rounds, progress):
                rows.append(row)
                _emit(options, row)
    figures = ("method", "ms", "quartiles", "ratio", "recall", "read %", "kept MB", "build s", "x roofline", "note")
    _show(options, rows, ("blocks", "queries"), figures)
    return 0


def run_laptop(options: LaptopOptions) -> int:
    """A pretrained model beside llama.cpp and transformers."""
    from benchmarks import laptop

    asked = laptop.check(options)
    rows = []
    with tokens_read("laptop", laptop.tokens_in_all(asked)) as progress:
        for row in laptop.run(asked, progress):
            rows.append(row)
            if options.json:
                print(json.dumps(row), flush=True)
    if not options.json:
        print(f"{rows[0]['machine']}; {', '.join(sorted({row['release'] for row in rows} - {''}))}; {rows[0]['model']}")
        print_table([_laptop_columns(row) for row in rows], LAPTOP_FIGURES)
    return 0


LAPTOP_FIGURES = (
    "threads",
    "context",
    "method",
    "dtype",
    "tokens/s",
    "range",
    "last piece",
    "step ms",
    "quartiles",
    "note",
)


def _laptop_columns(row: Row) -> Row:
    shown = {name: row[name] for name in ("threads", "context", "method", "dtype")} | {"note": row["skipped"] or ""}
    if row["skipped"] is not None:
        return shown
    lower, upper = (row[f"{side}_quartile_step_s"] * 1000 for side in ("lower", "upper"))
    return shown | {
        "tokens/s": row["tokens_per_s"],
        "range": f"{row['lowest_tokens_per_s']:.4g}-{row['highest_tokens_per_s']:.4g}",
        "last piece": row["last_tokens_per_s"],
        "step ms": row["step_s"] * 1000,
        "quartiles": f"{lower:.4g}-{upper:.4g}",
    }


def _check_plot(options: ComparisonOptions) -> None:
    """Raises ValueError, before anything is timed, if --plot cannot be drawn."""
    if options.plot is None:
        return
    try:
        import benchmarks.plots  # noqa: F401 - only whether it can be imported is asked
    except ModuleNotFoundError as error:
        raise ValueError(f"--plot needs {error.name}: pip install 'landmark-attention[benchmarks]'") from error


def _emit(options: RowOptions, row: Row) -> None:
    """With --json, prints a row as soon as it is known."""
    if options.json:
        print(json.dumps(row), flush=True)


def _show(options: ComparisonOptions, rows: list[Row], case: Iterable[str], figures: Iterable[str]) -> None:
    """The table, unless rows were printed already, and the plot."""
    if not options.json:
        first = rows[0]
        speeds = f"{first['flops_per_s'] / 1e9:,.0f} GFLOP/s, {first['bytes_per_s'] / 1e9:,.0f} GB/s"
        machine = f"{first['machine']}, threads: {first['threads']}, {first['dtype']}"
        print(f"{machine}: {speeds}; ratio: to {first['baseline']}")
        print_table([_columns(row) for row in rows], (*case, *figures))
    if options.plot is not None:
        from benchmarks.plots import draw

        draw(rows, options.plot)


def _columns(row: Row) -> Row:
    """The columns of a table, in milliseconds and 10^6 bytes; empty where nothing was measured."""
    shown = {"note": row["skipped"] or ""} | {name: row.get(name, "") for name in ("method", "context", "blocks")}
    shown |= {"pass": row.get("pass", ""), "batch": row.get("batch", ""), "case": _shape(row)}
    shown |= {"queries": row.get("queries", ""), "recall": "", "read %": "", "build s": ""}
    if row["skipped"] is not None:
        return shown | dict.fromkeys((*FIGURES[1:-1], "tokens/s"), "")
    lower, upper = (row[f"{side}_quartile_s"] * 1000 for side in ("lower", "upper"))
    if row["bench"] == "index":
        shown |= {"recall": f"{row['recall']:.4f}", "build s": row["build_s"]}
        shown |= {"read %": "" if row["read_share"] is None else f"{100 * row['read_share']:.3g}"}
    return shown | {
        "ms": row["median_s"] * 1000,
        "quartiles": f"{lower:.4g}-{upper:.4g}",
        "ratio": "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "tokens/s": row["tokens_per_s"],
        "extra MB": row["peak_extra_bytes"] / 1e6,
        "kept MB": row["kept_bytes"] / 1e6,
        "roofline ms": max(row["compute_bound_s"], row["memory_bound_s"]) * 1000,
        "x roofline": f"{row['times_roofline']:.2f}",
    }


def _shape(row: Row) -> str:
    """Batch x heads x length x head_dim of an operation, empty for a model."""
    if row["bench"] != "ops":
        return ""
    heads = f"{row['heads']}" if row["heads"] == row["kv_heads"] else f"{row['heads']}/{row['kv_heads']}"
    return f"{row['batch']} x {heads} x {row['length']} x {row['head_dim']}, block {row['block_size']}"


# Benchmarks that print row after row.


def run_weights(options: WeightsOptions) -> int:
    """Weights in 8 and 4 bits."""
    from benchmarks import weights

    return _print_rows(options, weights.run(options))


def run_tiers_read(options: TierReadOptions) -> int:
    """Reading and decoding within budgets."""
    from benchmarks import tiers

    return _print_rows(options, tiers.read(options))


def run_tiers_disk(options: TierDiskOptions) -> int:
    """Random reads of blocks."""
    from benchmarks import tiers

    return _print_rows(options, tiers.disk(options))


def run_tiers_int8(options: TierInt8Options) -> int:
    """Blocks in int8 below the device."""
    from benchmarks import int8_blocks

    return _print_rows(options, int8_blocks.run(options))


def run_tiers_overlap(options: TierOverlapOptions) -> int:
    """Overlap of the blocks that tokens and layers open."""
    from benchmarks import tiers

    return _print_rows(options, tiers.overlap(options))


def run_tiers_readers(options: TierReadersOptions) -> int:
    """Memory of many readers."""
    from benchmarks import shared_readers

    return _print_rows(options, shared_readers.run(options))


def run_long_read(options: LongReadOptions) -> int:
    """Reading into a context."""
    from benchmarks import long_context

    _set_threads(options)
    long_context.read(options, lambda row: _print_row(options, row))
    return 0


def run_long_ask(options: LongAskOptions) -> int:
    """Passkeys and latency."""
    from benchmarks import long_context

    return _print_rows(options, long_context.ask(options))


def run_long_decode(options: LongDecodeOptions) -> int:
    """Bytes per decoded token."""
    from benchmarks import long_context

    return _print_rows(options, long_context.decode(options))


def run_growth(options: GrowthOptions) -> int:
    """Time per token against length."""
    from benchmarks import long_context

    return _print_rows(options, long_context.growth(options))


def run_reliability(options: ReliabilityOptions) -> int:
    """Kills, hostile folders, flipped bits, forks, refused calls, power cuts and readers; 1 if anything fails."""
    from benchmarks import reliability

    return _run_trials(options, reliability)


def run_parallel(options: ParallelOptions) -> int:
    """One training in several processes."""
    from benchmarks import parallel

    return _print_rows(options, parallel.run(options))


def run_view(options: ViewPageOptions) -> int:
    """The page of `landmark view`."""
    from benchmarks import view

    return _print_rows(options, view.run(options))


def run_serve_load(options: ServeLoadOptions) -> int:
    """Load on a running server."""
    from benchmarks import serve_load

    return _print_rows(options, serve_load.run(options))


def run_serve_trials(options: ServeTrialsOptions) -> int:
    """Kills, hostile requests and a soak of `landmark serve`; 1 if anything fails."""
    from benchmarks import serve_trials

    return _run_trials(options, serve_trials)


def run_gpu(options: GpuOptions) -> int:
    """Everything on a CUDA device."""
    from benchmarks import gpu

    return gpu.run(options)


def _run_trials(options: ReliabilityOptions | ServeTrialsOptions, module: Any) -> int:
    """The trials of a module; 1 if anything failed."""
    from benchmarks.trials import chosen

    names = chosen(options, module.PARTS)
    _set_threads(options)
    failures = 0
    for row in module.run(options, names):
        _print_row(options, row)
        failures += len(row["failures"])
    return int(failures > 0)


def _print_rows(options: RowOptions, rows: Iterable[Row]) -> int:
    _set_threads(options)
    for row in rows:
        _print_row(options, row)
    return 0


def _set_threads(options: RowOptions) -> None:
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)


def _print_row(options: RowOptions, row: Row) -> None:
    """A row as JSON, or as text on one line."""
    if options.json:
        print(json.dumps(row), flush=True)
    else:
        print(", ".join(f"{name} {figure_text(value)}" for name, value in row.items() if value is not None), flush=True)
