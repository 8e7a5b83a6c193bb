"""`landmark bench ops|read|decode|index`: time and memory beside full attention and beside what the machine can do."""

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.options import CommonOptions, DecodeOptions, IndexSearchOptions, OpsOptions, ReadOptions
from landmark.cli.eval import print_table, whole_numbers
from landmark.cli.reading import tokens_read

FIGURES = ("contender", "ms", "quartiles", "ratio", "extra MB", "kept MB", "floor ms", "over floor", "note")


def run_ops(options: OpsOptions) -> int:
    """Measure attention as an operation."""
    options.check()
    lengths = None if options.lengths is None else whole_numbers("lengths", options.lengths)
    check_plot(options)
    from benchmarks import ops
    from benchmarks.machine import prepare

    names = ops.contenders(options)
    cases = ops.cases(options, lengths)
    machine = prepare(options)
    rows = []
    with tokens_read("bench ops", len(cases) * 2 * (options.rounds + 1)) as progress:
        for case in cases:
            for row in ops.run(machine, case, names, options.rounds, progress):
                rows.append(row)
                tell(options, row)
    show(options, rows, ("case", "pass"), [column for column in FIGURES if column != "kept MB"])
    return 0


def run_read(options: ReadOptions) -> int:
    """Measure reading chunks of a long text."""
    options.check()
    contexts = whole_numbers("contexts", options.contexts)
    check_plot(options)
    from benchmarks import read
    from benchmarks.machine import prepare
    from benchmarks.models import subject

    machine = prepare(options)
    reader = subject(options, machine, read.LAYERS)
    read.check(reader, options, contexts)
    rows = []
    with tokens_read("bench read", len(contexts) * (options.rounds + 1)) as progress:
        for context in contexts:
            for row in read.run(machine, reader, options, context, progress):
                rows.append(row)
                tell(options, row)
    show(options, rows, ("context", "blocks"), ("contender", "tokens/s", *FIGURES[1:]))
    return 0


def run_decode(options: DecodeOptions) -> int:
    """Measure decoding one token after another."""
    options.check()
    contexts = whole_numbers("contexts", options.contexts)
    batch_sizes = whole_numbers("batch_sizes", options.batch_sizes)
    check_plot(options)
    from benchmarks import decode
    from benchmarks.machine import prepare
    from benchmarks.models import subject

    machine = prepare(options)
    reader = subject(options, machine, decode.LAYERS)
    rows = []
    with tokens_read("bench decode", len(contexts) * len(batch_sizes) * (options.rounds + 1)) as progress:
        for batch in batch_sizes:
            for context in contexts:
                for row in decode.run(machine, reader, options, context, batch, progress):
                    rows.append(row)
                    tell(options, row)
    show(options, rows, ("context", "batch"), FIGURES)
    return 0


def run_index(options: IndexSearchOptions) -> int:
    """Measure search through landmark keys."""
    options.check()
    sizes = whole_numbers("blocks", options.blocks)
    queries = whole_numbers("queries", options.queries)
    check_plot(options)
    from benchmarks import index
    from benchmarks.landmark_keys import landmarks_of_book
    from benchmarks.machine import prepare

    chosen = index.contenders(options.contenders)
    machine = prepare(options)
    landmarks = landmarks_of_book()
    rows = []
    with tokens_read("bench index", len(sizes) * len(queries) * (options.rounds + 1)) as progress:
        for blocks in sizes:
            for row in index.run(machine, landmarks, blocks, queries, chosen, options.rounds, progress):
                rows.append(row)
                tell(options, row)
    figures = ("contender", "ms", "quartiles", "ratio", "recall", "read %", "kept MB", "build s", "over floor", "note")
    show(options, rows, ("blocks", "queries"), figures)
    return 0


def check_plot(options: CommonOptions) -> None:
    """Raises ValueError, before anything is timed, if a plot is wanted that cannot be drawn."""
    if options.plot is None:
        return
    try:
        import benchmarks.plots  # noqa: F401 - only whether it can be imported is asked
    except ModuleNotFoundError as error:
        raise ValueError(f"--plot needs {error.name}: pip install 'landmark-attention[plot]'") from error


def tell(options: CommonOptions, row: dict[str, Any]) -> None:
    """With --json, a row is printed as soon as it is known."""
    if options.json:
        print(json.dumps(row), flush=True)


def show(options: CommonOptions, rows: list[dict[str, Any]], case: Iterable[str], figures: Iterable[str]) -> None:
    """The table, unless rows were printed already, and the plot."""
    if not options.json:
        first = rows[0]
        speeds = f"{first['flops_per_s'] / 1e9:,.0f} GFLOP/s, {first['bytes_per_s'] / 1e9:,.0f} GB/s"
        print(f"{first['machine']}, threads: {first['threads']}, {first['dtype']}: {speeds}; ratio: to {first['base']}")
        print_table([for_people(row) for row in rows], (*case, *figures))
    if options.plot is not None:
        from benchmarks.plots import draw

        draw(rows, options.plot)


def for_people(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a table: milliseconds and 10^6 bytes; empty where nothing was measured."""
    shown = {"note": row["skipped"] or ""} | {name: row.get(name, "") for name in ("contender", "context", "blocks")}
    shown |= {"pass": row.get("pass", ""), "batch": row.get("batch", ""), "case": shape(row)}
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
        "floor ms": max(row["arithmetic_floor_s"], row["byte_floor_s"]) * 1000,
        "over floor": f"{row['over_floor']:.2f}",
    }


def shape(row: dict[str, Any]) -> str:
    """Batch x heads x length x head_dim of an operation, empty for a model."""
    if row["bench"] != "ops":
        return ""
    heads = f"{row['heads']}" if row["heads"] == row["kv_heads"] else f"{row['heads']}/{row['kv_heads']}"
    return f"{row['batch']} x {heads} x {row['length']} x {row['head_dim']}, block {row['block_size']}"
