"""A training recipe: optimizer settings and the stages of a curriculum, read from TOML."""

import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from landmark.data.recall import RecallTask
from landmark.settings import current_names
from landmark.training.options import TrainOptions, flags, given_options
from landmark.training.stages import Stage

ONE_STAGE_OPTIONS = ("steps", "window_positions", "batch_size", "micro_batches", "learning_rate", "packing")


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up and a cosine schedule to `final_learning_rate` over all stages."""

    stages: tuple[Stage, ...]
    learning_rate: float = 3e-4
    final_learning_rate: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a recipe needs at least one [[stage]]")
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(f"final_learning_rate must be from 0 to learning_rate, not {self.final_learning_rate}")
        if self.micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, not {self.micro_batches}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps must be from 0 to {self.steps - 1}, not {self.warmup_steps}")

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as a JSON-serializable dictionary."""
        return asdict(self)


def recipe_of(options: TrainOptions) -> Recipe:
    """The recipe in the file that `options` name, else a single stage made of the options.

    Raises ValueError if both are given.
    """
    given = {name: value for name, value in given_options(options).items() if name in ONE_STAGE_OPTIONS}
    if options.recipe is not None:
        if given:
            raise ValueError(f"the recipe {options.recipe} decides about {flags(given)}; set them there")
        return read_recipe(options.recipe)
    stage_settings = {"steps": 1000, "window_positions": 512, "batch_size": 8, "packing": False}
    stage = Stage(**{name: given.pop(name, default) for name, default in stage_settings.items()})
    return Recipe((stage,), warmup_steps=min(Recipe.warmup_steps, stage.steps // 10), **given)


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe: the fields of `Recipe` at the top, a `[[stage]]` table for each `Stage`.

    The fields of a stage's `RecallTask` (keys, questions, ...) belong to the same table. Raises ValueError, naming the
    file, for TOML that does not parse, for unknown or missing settings, and for values of the wrong type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        stages = tuple(_stage(table) for table in settings.pop("stage", []))
        return Recipe(stages, **_checked(current_names(settings), Recipe))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _stage(table: dict[str, Any]) -> Stage:
    table = current_names(table)
    task_names = {item.name for item in fields(RecallTask)}
    task = {name: value for name, value in table.items() if name in task_names}
    rest = {name: value for name, value in table.items() if name not in task_names}
    settings = _checked(rest, Stage)
    missing = [name for name in ("steps", "window_positions", "batch_size") if name not in settings]
    if missing:
        raise ValueError(f"a stage lacks {', '.join(missing)}")
    return Stage(**settings, recall=RecallTask(**_checked(task, RecallTask)))


def _checked(table: dict[str, Any], kind: type) -> dict[str, Any]:
    """`table` with its names and types checked against the dataclass `kind`, and lists as tuples."""
    types = {item.name: item.type for item in fields(kind) if item.name not in ("stages", "recall")}
    checked = {}
    for name, value in table.items():
        if name not in types:
            raise ValueError(f"unknown setting {name!r}; known are {', '.join(types)}")
        checked[name] = _typed(name, value, types[name])
    return checked


def _typed(name: str, value: Any, kind: Any) -> Any:
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    element = {tuple[int, int]: int, tuple[float, float]: float}.get(kind)
    if element is not None and isinstance(value, list) and len(value) == 2:
        return tuple(_typed(name, part, element) for part in value)
    expected = f"a list of two {element.__name__}" if element is not None else kind.__name__
    if kind is float:
        expected = "float and finite"
    raise ValueError(f"{name} must be {expected}, not {value!r}")
