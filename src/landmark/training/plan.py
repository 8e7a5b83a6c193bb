"""Fully resolved training configuration, made from the options of a command line or by a program."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from landmark.limits import check_limits
from landmark.training.options import TrainOptions, given_options
from landmark.training.recipe import Recipe, recipe_of

# Settings of folders, logs and processes, which change no parameter of the model.
FREE = {"out", "tokens", "parallel", "threads", "json", "log_every", "eval_every", "save_every", "eval_windows"}
FREE.add("gradient_checkpointing")  # recomputes the same activations
WHOLE_WINDOWS = {"landmark", "landmark_distractors"}  # attentions that read a window at once


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021): a linear module adds `alpha / rank` times two matrices of `rank`.

    `targets` are the names of the modules, or the ends of their names; without any, all linear modules but the head.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"--lora-{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Plan:
    """Fully resolved training configuration: `TrainOptions` with its files read and its options of adapters as one.

    `config` is a transformers configuration with a model_type, to start from scratch; else `model` names a model.
    With `vocabulary`, a tokenizer of that many tokens is trained on `texts` if the folder `tokenizer` has none yet.
    """

    texts: tuple[str, ...]
    out: Path
    recipe: Recipe
    model: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    vocabulary: int | None = None
    validation: tuple[str, ...] = ()
    tokens: Path | None = None
    block_size: int | None = None
    retrieve: int | None = None
    adapter: Lora | None = None
    distill: bool = False
    load_in: str | None = None
    gradient_checkpointing: bool = False
    precision: str = "auto"
    save_dtype: str = "float32"
    log_every: int = 10
    eval_every: int = 500
    save_every: int = 200
    eval_windows: int = 64
    seed: int = 0
    parallel: str | None = None
    threads: int | None = None
    json: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either --model (start from a model) or --config (start from scratch)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("the configuration has no model_type; it must be a transformers configuration")
        if self.load_in is not None and self.adapter is None:
            raise ValueError("4-bit weights cannot be trained themselves: give --adapter lora with --load-in 4bit")
        if self.load_in is not None and str(self.model).lower().endswith(".gguf"):
            raise ValueError("--load-in 4bit quantizes models of a folder or the hub: leave it out with a GGUF file")
        attentions = {stage.attention for stage in self.recipe.stages}
        if self.gradient_checkpointing and (others := attentions - WHOLE_WINDOWS):
            named = ", ".join(sorted(others))
            raise ValueError(f"attention {named} carries states: leave --gradient-checkpointing out")
        if self.adapter is not None:
            self._check_adapter(attentions)
        if self.distill:
            self._check_distillation(attentions)

    def _check_adapter(self, attentions: set[str]) -> None:
        if self.model is None:
            raise ValueError("--adapter requires a pretrained model: use --model, not --config")
        if "knn" in attentions:
            raise ValueError("--adapter does not train memory gates: leave it out with attention 'knn'")
        if self.parallel not in (None, "ddp"):
            raise ValueError(f"--adapter cannot be sharded yet: leave --parallel {self.parallel} out")

    def _check_distillation(self, attentions: set[str]) -> None:
        if self.model is None:
            raise ValueError("--distill requires a pretrained model: use --model, not --config")
        if self.parallel not in (None, "ddp"):
            raise ValueError(f"--distill cannot be sharded yet: leave --parallel {self.parallel} out")
        if others := attentions - WHOLE_WINDOWS:
            raise ValueError(
                f"--distill compares whole windows, and a stage has attention {', '.join(sorted(others))}: choose "
                "landmark or landmark_distractors"
            )
        if any(stage.packing for stage in self.recipe.stages):
            raise ValueError("--distill has a teacher with full attention over the window: leave packing out")

    def identity(self) -> dict[str, Any]:
        """The settings that determine the trained parameters, as JSON."""
        settings = {name: value for name, value in asdict(self).items() if name not in FREE}
        for stage in settings["recipe"]["stages"]:
            for later in ("packing", "distractors", "distract_answers"):
                if not stage[later]:
                    del stage[later]  # so that trainings begun before these settings existed can be resumed
            if not stage["recall"]["chat"]:
                del stage["recall"]["chat"]
        if not self.distill:
            del settings["distill"]
        return json.loads(json.dumps(settings, default=str))


def plan_of(options: TrainOptions) -> Plan:
    """The plan of these options; raises ValueError, naming the file or option, if they are inconsistent."""
    check_limits(options)
    if not options.texts:
        raise ValueError("there is no text to train on: name some with --texts")
    known = {field.name for field in fields(Plan)} - {"recipe", "config", "adapter"}
    taken = {name: value for name, value in given_options(options).items() if name in known}
    taken |= {name: Path(taken[name]) for name in ("out", "tokens") if name in taken}  # programs may give text
    config = None if options.config is None else _read_config(Path(options.config))
    return Plan(**taken, recipe=recipe_of(options), config=config, adapter=_adapter(options))


def _adapter(options: TrainOptions) -> Lora | None:
    rank, alpha, targets = options.lora_rank, options.lora_alpha, options.lora_targets
    if options.adapter is None:
        if rank is not None or alpha is not None or targets:
            raise ValueError("--lora-rank, --lora-alpha and --lora-targets describe adapters: give --adapter lora too")
        return None
    rank = Lora.rank if rank is None else rank
    return Lora(rank, 2 * rank if alpha is None else alpha, targets)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ValueError(f"{path} has no model_type; it must be a transformers configuration")
    return settings
