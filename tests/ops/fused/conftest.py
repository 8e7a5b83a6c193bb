"""What makes the tests bearable: on a GPU no tuning, and without one a quicker interpreter."""

import sys
from pathlib import Path
from typing import Any

import pytest
import triton.language as tl
from triton.runtime import interpreter

from landmark.ops.fused import launch

sys.path.insert(0, str(Path(__file__).parent))  # for fused_cases


@pytest.fixture(autouse=True)
def _prepare_the_language_once(monkeypatch):
    """The interpreter replaces the functions of triton.language anew at each call of a device function.

    That takes two thirds of its time, and changes nothing where it has been done already.
    """

    def call(self: interpreter.InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        known = self.fn.__globals__.values()
        if any(tl.core.is_builtin(module.load) for module in (tl, tl.core) if any(module is x for x in known)):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


@pytest.fixture(autouse=True)
def _tune_nothing(monkeypatch):
    """To tune, a GPU's compiler makes each kernel several times over. One test has them all."""
    monkeypatch.setattr(launch, "tilings", lambda *args: launch.tilings(*args)[:1])
