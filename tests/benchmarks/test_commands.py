"""`python -m benchmarks`: rows with all their fields, tables, plots."""

import json

import pytest

from benchmarks import compare, machine, ops
from benchmarks.__main__ import BENCHMARKS
from landmark.cli.program import USAGE_ERROR

FIGURES = [
    "rounds",
    "median_s",
    "lower_quartile_s",
    "upper_quartile_s",
    "minimum_s",
    "maximum_s",
    "ratio",
    "tokens_per_s",
    "peak_extra_bytes",
    "kept_bytes",
    "flops",
    "bytes",
    "compute_bound_s",
    "memory_bound_s",
    "times_roofline",
]
WHERE = ["device", "machine", "threads", "dtype", "method", "baseline"]
AFTER = ["flops_per_s", "bytes_per_s", "skipped"]
SHAPE = ["layers", "heads", "kv_heads", "head_dim", "layer_parameters", "head_parameters", "number_bytes"]
SETTINGS = ["block_size", "retrieve", "local_blocks", "selection"]

OPS = ["ops", "--rounds", "2", "--methods", "blockwise,reference"]
TINY_OPS = [*OPS, "--lengths", "12,24", "--heads", "4", "--kv-heads", "2", "--head-dim", "8", "--block-size", "3"]
TINY_MODEL = ["--layers", "2", "--heads", "2", "--width", "16", "--block-size", "5", "--rounds", "2", "--threads", "1"]
TINY_READ = ["read", *TINY_MODEL, "--contexts", "60,100", "--chunk-size", "20"]
TINY_DECODE = ["decode", *TINY_MODEL, "--contexts", "60,100", "--batch-sizes", "1,2", "--steps", "2"]


@pytest.fixture(autouse=True)
def _small_speed_tests(monkeypatch):
    monkeypatch.setattr(machine, "MATMUL_WIDTH", {"cpu": 64})
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 1 << 16})


def rows_of(arguments: list[str], capsys) -> list[dict]:
    assert BENCHMARKS.main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_figures(rows: list[dict]) -> None:
    for row in rows:
        assert row["skipped"] is None
        assert 0 < row["minimum_s"] <= row["lower_quartile_s"] <= row["median_s"]
        assert row["median_s"] <= row["upper_quartile_s"] <= row["maximum_s"]
        assert row["peak_extra_bytes"] > 0
        larger = max(row["flops"] / row["flops_per_s"], row["bytes"] / row["bytes_per_s"])
        assert row["times_roofline"] == pytest.approx(row["median_s"] / larger)
        if row["method"] == row["baseline"]:
            assert row["ratio"] == 1


def test_ops_rows(capsys):
    rows = rows_of(TINY_OPS, capsys)
    case = ["bench", "batch", "heads", "kv_heads", "length", "head_dim", "block_size", "pass"]
    assert all(list(row) == [*case, *WHERE, *FIGURES, *AFTER] for row in rows)
    found = [(row["length"], row["pass"], row["method"]) for row in rows]
    names = ("sdpa", "blockwise", "reference")
    assert found == [(n, p, name) for n in (12, 24) for p in ("forward", "forward+backward") for name in names]
    check_figures(rows)
    landmark, causal = rows[1], rows[0]
    assert landmark["flops"] < causal["flops"]  # no weight for landmarks' values
    assert (causal["kept_bytes"], causal["tokens_per_s"], causal["dtype"]) == (0, None, "float32")


def test_read_rows(capsys):
    rows = rows_of(TINY_READ, capsys)
    what = ["bench", "model", "context", "blocks", "chunk", *SETTINGS, *SHAPE]
    assert all(list(row) == [*what, *WHERE, *FIGURES, *AFTER] for row in rows)
    found = [(row["context"], row["blocks"], row["method"]) for row in rows]
    names = ("memory", "no memory", "plain", "full")
    assert found == [(n, n // 5, name) for n in (60, 100) for name in names]
    check_figures(rows)
    assert all(row["tokens_per_s"] == pytest.approx(20 / row["median_s"]) for row in rows)
    kept = {row["method"]: row["kept_bytes"] for row in rows[4:]}
    assert kept["memory"] > kept["full"] > kept["no memory"] > kept["plain"] == 0


def test_full_attention_up_to_a_length(capsys):
    rows = rows_of([*TINY_READ, "--full-limit", "60"], capsys)
    reasons = [row["skipped"] for row in rows if row["method"] == "full"]
    assert reasons == [None, "the context is longer than full_limit 60"]
    assert rows[-1]["median_s"] is None


def test_decode_rows(capsys):
    rows = rows_of([*TINY_DECODE, "--dense"], capsys)
    what = ["bench", "model", "context", "batch", "steps", *SETTINGS, *SHAPE]
    assert all(list(row) == [*what, *WHERE, *FIGURES, *AFTER] for row in rows)
    found = [(row["batch"], row["context"], row["method"]) for row in rows]
    names = ("memory", "no memory", "full", "growing", "dense")
    assert found == [(b, n, name) for b in (1, 2) for n in (60, 100) for name in names]
    check_figures(rows)
    assert all(row["tokens_per_s"] == pytest.approx(row["batch"] / row["median_s"]) for row in rows)


def test_a_context_that_does_not_fit_is_skipped_with_the_figures(capsys):
    rows = rows_of([*TINY_DECODE[:-6], "--contexts", "60,1000000000000", "--steps", "2"], capsys)
    reasons = {(row["context"], row["method"]): row["skipped"] for row in rows}
    for method in ("memory", "full", "growing"):
        assert reasons[60, method] is None
        assert "GB are free" in reasons[1000000000000, method]


def test_a_converted_model_from_a_folder(model_folder, capsys):
    arguments = ["--model", str(model_folder), "--contexts", "60", "--rounds", "2", "--retrieve", "1"]
    rows = rows_of(["read", *arguments, "--chunk-size", "20"], capsys)
    assert {(row["block_size"], row["retrieve"], row["local_blocks"]) for row in rows} == {(5, 1, 1)}
    check_figures(rows)
    check_figures(rows_of(["decode", *arguments, "--steps", "2", "--batch-sizes", "1"], capsys))


@pytest.mark.parametrize(
    ("arguments", "suffix", "words"),
    [
        (TINY_OPS, ".png", ["forward+backward", "blockwise", "1 x", "4/2", "block 3", "x roofline"]),
        (TINY_READ, ".svg", ["tokens/s", "no memory", "kept MB"]),
        (TINY_DECODE, ".png", ["memory", "full", "ratio"]),
    ],
)
def test_table_and_plot(arguments, suffix, words, capsys, tmp_path):
    plot = tmp_path / f"plot{suffix}"
    assert BENCHMARKS.main([*arguments, "--plot", str(plot)]) == 0
    printed = capsys.readouterr()
    assert all(word in printed.out for word in words)
    assert printed.err == ""
    head = plot.read_bytes()[:200]
    assert b"PNG" in head if suffix == ".png" else b"<svg" in head or b"<?xml" in head


def test_a_plot_of_rows_that_were_all_skipped(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ops, "shortage", lambda needed, device: "needs more")
    assert BENCHMARKS.main([*TINY_OPS, "--plot", str(tmp_path / "plot.png")]) == 0
    assert "needs more" in capsys.readouterr().out
    assert (tmp_path / "plot.png").exists()


def test_flex_attention_or_why_not(monkeypatch, capsys):
    # What compiling takes half a minute to find out is raised here at once.
    def refuse(*arguments, **options):
        raise NotImplementedError("no compiler")

    monkeypatch.setattr(ops.torch, "compile", lambda function, **options: refuse)
    rows = rows_of([*TINY_OPS, "--methods", "flex"], capsys)
    assert {row["skipped"] for row in rows if row["method"] == "flex"} == {"NotImplementedError: no compiler"}
    assert NotImplementedError in compare.FOREIGN_REFUSALS[1].__subclasses__()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ops", "--lengths", "4,x"], "lengths is '4,x'"),
        (["ops", "--methods", "nonsense"], "'nonsense' is none on cpu"),
        (["read", "--chunk-size", "0"], "chunk_size is 0"),
        (["decode", "--batch-sizes", "0"], "batch_sizes is '0'"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    assert BENCHMARKS.main(arguments) == USAGE_ERROR
    output = capsys.readouterr()
    assert said in output.err
    assert (output.err.count("\n"), output.out) == (1, "")
