"""Options of `landmark train`. Light to import, for a fast command line."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from landmark.limits import SEEDS, LearningRate, MaybeFromOne, MaybeFromZero, OutFile, OutFolder, Range, Threads

Precision = Literal["auto", "float32", "bfloat16", "float16"] | None
Parallel = Literal["ddp", "fsdp", "sequence"] | None


@dataclass(frozen=True)
class TrainOptions:
    """Train a model with landmarks, from scratch (--config) or from a pretrained model (--model).

    Run the same command again to resume an interrupted training exactly.
    """

    GROUPS: ClassVar = {
        "adapter": ("adapter", "lora_rank", "lora_alpha", "lora_targets", "load_in"),
        "device": ("gradient_checkpointing", "precision", "save_dtype", "parallel", "threads"),
        "logging": ("log_every", "eval_every", "eval_windows", "save_every", "json"),
    }

    out: Annotated[Path, OutFolder()]
    """Folder for checkpoints, tokenized text and, at the end, the trained model (OUT/model)."""

    texts: tuple[str, ...] = ()
    """Texts to train on: files, json:PATH:COLUMN, csv:PATH:COLUMN, parquet:PATH:COLUMN,
    hf:NAME[:CONFIG]:SPLIT:COLUMN or corpus:NAME:SPLIT."""

    model: str | None = None
    """Model to start from: a folder, a GGUF file (dequantized) or a name on the Hugging Face hub."""

    config: Path | None = None
    """Start from scratch with this transformers config, a JSON file with a model_type."""

    tokenizer: str | None = None
    """Tokenizer: a folder or a name on the hub. Default: that of --model."""

    validation: tuple[str, ...] = ()
    """Held-out texts to measure the loss on; the same forms as --texts."""

    tokens: Annotated[Path | None, OutFolder()] = None
    """Folder for the tokenized text, to share it between runs. Default: inside OUT."""

    recipe: Path | None = None
    """TOML file with stages and optimizer settings, in the place of the options --steps to --packing."""

    steps: Annotated[int | None, Range(1, 10**8)] = None
    """Optimizer steps (default 1000, or those of the recipe)."""

    window_positions: MaybeFromOne = None
    """Length of a training window, landmarks included (default 512)."""

    batch_size: MaybeFromOne = None
    """Windows in a micro-batch (default 8)."""

    micro_batches: MaybeFromOne = None
    """Micro-batches per optimizer step: gradient accumulation (default 1), shared evenly by processes of torchrun."""

    learning_rate: LearningRate = None
    """Peak learning rate (default 0.0003)."""

    packing: bool = False
    """Mask attention between the documents packed in a window."""

    adapter: Literal["lora"] | None = None
    """Train LoRA adapters and the landmark's embedding, and no other parameter of --model. The final model has them
    merged; OUT/adapter holds them alone."""

    lora_rank: Annotated[int | None, Range(1, 10**5)] = None
    """Rank of the adapters (default 16)."""

    lora_alpha: MaybeFromOne = None
    """LoRA alpha: adapters are scaled by alpha / rank (default: twice the rank)."""

    lora_targets: tuple[str, ...] = ()
    """Names of the linear modules that get adapters, such as q_proj. Default: all but the head."""

    distill: bool = False
    """Self-distillation: on text, the loss is the KL divergence from --model before conversion, with full attention in
    the same window; answers of recall tasks keep cross entropy. With adapters it needs no second copy of the model."""

    load_in: Literal["4bit"] | None = None
    """Load --model in 4 bits while adapters are trained (QLoRA); needs bitsandbytes."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""

    block_size: MaybeFromOne = None
    """Ordinary tokens per block. Default: the model's own if it has landmarks, else 63."""

    retrieve: MaybeFromZero = None
    """Blocks opened per query by the final model. Default: the model's own, else 4."""

    precision: Precision = None
    """Dtype of the forward pass; auto (the default) is bfloat16 or float16 on GPUs that have it, else float32."""

    save_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of the saved model (default float32)."""

    log_every: MaybeFromOne = None
    """Steps between log lines (default 10)."""

    eval_every: MaybeFromOne = None
    """Steps between measurements on the validation texts (default 500)."""

    save_every: MaybeFromOne = None
    """Steps between checkpoints (default 200); the newest two are kept."""

    eval_windows: MaybeFromOne = None
    """Windows of validation text in a measurement (default 64), and as many recall windows if the last stage has
    any."""

    seed: Annotated[int | None, SEEDS] = None
    """Seed of the initial parameters and of the windows (default 0)."""

    parallel: Parallel = None
    """Parallelism of the processes of torchrun: ddp (the default), data parallel; fsdp, the same with parameters,
    gradients and optimizer states sharded; sequence, as fsdp, but all share every window, for very long windows."""

    threads: Threads = None
    """Threads to compute with. Default: one for each core."""

    json: Annotated[str | None, OutFile(or_stdout=True)] = None
    """Write each log event as a line of JSON to this file, or to standard output if it is -."""


def given_options(options: Any) -> dict[str, Any]:
    """The fields of a dataclass of options that differ from their defaults, by name."""
    return {field.name: value for field in fields(options) if (value := getattr(options, field.name)) != field.default}


def flags(names: Iterable[str]) -> str:
    """Names of options as written on the command line."""
    return ", ".join("--" + name.replace("_", "-") for name in names)
