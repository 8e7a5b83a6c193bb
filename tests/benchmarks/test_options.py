"""Options that mean nothing are refused before anything starts."""

from pathlib import Path

import pytest
import torch

from benchmarks import ops, read
from benchmarks.machine import prepare
from benchmarks.models import model_pair
from benchmarks.options import DecodeOptions, OpsOptions, ReadOptions


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        (OpsOptions, {"rounds": 0}, "rounds is 0: give 1 or more"),
        (OpsOptions, {"threads": -1}, "threads is -1"),
        (OpsOptions, {"plot": "x.pdf"}, r"x\.pdf: name a file that ends in \.png or \.svg"),
        (OpsOptions, {"plot": "no/such/x.png"}, "a folder that does not exist"),
        (OpsOptions, {"heads": 6, "kv_heads": 4}, "kv_heads is 4: give a divisor of the 6"),
        (OpsOptions, {"kv_heads": 3}, "a divisor of the 8"),
        (OpsOptions, {"head_dim": 0}, "head_dim is 0"),
        (ReadOptions, {"chunk_size": 0}, "chunk_size is 0"),
        (ReadOptions, {"width": 100}, "width is 100: give an even multiple of the 8 heads"),
        (ReadOptions, {"model": "somewhere", "layers": 2}, "layers shape the random model"),
        (DecodeOptions, {"local_blocks": -1}, "local_blocks is -1: give 0 or more"),
        (DecodeOptions, {"steps": 0}, "steps is 0"),
    ],
)
def test_refused(options, given, said):
    paths = {name: Path(value) for name, value in given.items() if name in ("plot", "model")}
    with pytest.raises(ValueError, match=said):
        options(**(given | paths)).check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="torch sees no CUDA device: use --device cpu"):
        prepare(OpsOptions(device="cuda"))


def test_no_model_there(machine, tmp_path):
    with pytest.raises(ValueError, match=r"no model at .*missing"):
        model_pair(ReadOptions(model=tmp_path / "missing"), machine, 6)


def test_cases_are_the_devices_or_those_named():
    assert ops.cases(OpsOptions(), None) == list(ops.CASES["cpu"])
    assert ops.Case(1, 8, 8, 4096, 64, 63) in ops.CASES["cpu"]
    assert ops.cases(OpsOptions(), [7, 9]) == [ops.Case(length=7), ops.Case(length=9)]
    assert ops.cases(OpsOptions(heads=4), None) == [ops.Case(heads=4, kv_heads=4)]
    assert ops.cases(OpsOptions(heads=4, kv_heads=2, batch=3, head_dim=16, block_size=5), [10]) == [
        ops.Case(3, 4, 2, 10, 16, 5)
    ]


def test_methods():
    assert ops.methods(OpsOptions()) == ("sdpa", "flex", "blockwise", "reference")
    assert ops.methods(OpsOptions(methods="blockwise")) == ("sdpa", "blockwise")
    assert "fused" in ops.methods(OpsOptions(device="cuda"))
    with pytest.raises(ValueError, match="'fused' is none on cpu, choose from sdpa, flex"):
        ops.methods(OpsOptions(methods="blockwise,fused"))


def test_reading_options_that_do_not_fit_the_model(machine):
    shape = {"layers": 1, "heads": 2, "width": 16, "block_size": 5, "rounds": 3}
    pair = model_pair(ReadOptions(**shape), machine, 6)
    with pytest.raises(ValueError, match="chunk_size is 5000: at most"):
        read.check(pair, ReadOptions(**shape, chunk_size=5000), [100000])
    with pytest.raises(ValueError, match="context 70 is shorter than the 80 tokens read before the median round"):
        read.check(pair, ReadOptions(**shape, chunk_size=40), [1000, 70])
