"""Options that several commands share, and the model that they name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from landmark.cli.output import announce_compiling, bytes_done, print_escaped
from landmark.limits import LARGEST, Limit
from landmark.settings import KvDtype, Verification
from landmark.urls import shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from landmark.contexts.context import Context
    from landmark.hf import LandmarkCache

LONGEST = 10**9  # tokens of a text

Dtype = Literal["auto", "float32", "bfloat16"]
Weights = Literal["int8"]


class Bytes(Limit):
    """A number of bytes, as text such as 256MB."""

    def check(self, name: str, value: str) -> None:
        """Raises ValueError for text that is no number of bytes."""
        from landmark.store.base import parse_bytes

        parse_bytes(name, value)


@dataclass(frozen=True, kw_only=True)
class NumberOptions:
    """The numbers that a model computes with. A context decides them, unless others are given."""

    dtype: Dtype | None = None
    """Number type of weights, keys and values; auto: bfloat16 where the processor or the GPU multiplies it fast, else
    float32. Default: float32."""
    weights: Weights | None = None
    """int8 keeps the weights of linear layers in 8 bits: on a CPU a generated token takes a fraction of the time, and
    predictions change a little. Default: the weights as they are."""

    def of_context(self, path: Path) -> "NumberOptions":
        """Those with which a context was read, where none are given; raises ValueError for others."""
        from landmark.contexts.compatibility import recorded_numbers

        dtype, weights = recorded_numbers(path)
        for name, given, kept in (("dtype", self.dtype, dtype), ("weights", self.weights, weights)):
            if given not in (None, "auto", kept):
                raise ValueError(
                    f"{name} is {given}, and {path} was read with {kept or 'weights as they are'}: leave --{name} out,"
                    f" or read its texts again with --{name} {given}"
                )
        if self.dtype in (None, "auto"):
            return replace(self, dtype=dtype, weights=self.weights or weights)
        return replace(self, weights=self.weights or weights)

    def keywords(self) -> dict[str, Any]:
        """Keywords of `landmark.from_pretrained`; raises ValueError for weights in 8 bits where models go to a GPU."""
        import torch

        from landmark.hf.loading import dtype_of

        if self.weights is not None and torch.cuda.is_available():
            raise ValueError(f"weights is {self.weights}, for decoding on a CPU, and torch sees a GPU: leave it out")
        dtype = dtype_of(self.dtype or "float32")
        if self.dtype == "auto":
            print_escaped(f"--dtype auto: {str(dtype).removeprefix('torch.')} on this machine", to_stderr=True)
        elif dtype == torch.bfloat16 != dtype_of("auto"):
            slow = "bfloat16 is not multiplied fast on this machine: reading takes several times as long as in float32"
            print_escaped(slow, to_stderr=True)
        return {"dtype": dtype, "weights": self.weights}


AS_GIVEN = NumberOptions()


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Memory of blocks behind the local window."""

    host_budget: Annotated[str | None, Bytes()] = None
    """Most bytes of keys and values kept in main memory, e.g. 256MB; landmark keys come on top. Default: 256MB for a
    context, no limit for a text."""
    device_budget: Annotated[str | None, Bytes()] = None
    """The same for a GPU's memory. A context that fits is brought there when it is asked. Default: if a quarter of the
    memory stays free."""
    kv_dtype: KvDtype | None = None
    """int8 keeps keys and values below the device in 8 bits, in files about a quarter of the bytes of float32, and
    answers change a little. For a new context, which any command then opens without this option, or beside a budget."""
    index: Literal["auto", "exact", "hierarchical"] = "auto"
    """Index of the landmark keys: docs/indexes.md."""

    def keywords(self) -> dict[str, Any]:
        """Keywords of `LandmarkCache` and `Context`."""
        return {
            "host_budget": self.host_budget,
            "device_budget": self.device_budget,
            "kv_dtype": self.kv_dtype,
            "index": self.index,
        }

    def check(self, config: "PretrainedConfig", context: Path | None = None, **settings: Any) -> "LandmarkCache":
        """A cache of a model with this `config`, which reads as it will be read, after a context that there is.

        Raises ValueError for what does not go with the context, or with the model.
        """
        import torch

        from landmark.contexts.caches import check_memory
        from landmark.contexts.either import manifest_of
        from landmark.hf import LandmarkCache

        if self.device_budget is not None and not torch.cuda.is_available():
            raise ValueError("device_budget is for GPUs, and torch sees none here: give host_budget")
        if context is None:
            return LandmarkCache(config, **self.keywords(), **settings)
        manifest = manifest_of(context)
        return check_memory(manifest.header, manifest.layout, config, **self.keywords(), **settings)


def whole_numbers(name: str, text: str, most: int = LARGEST) -> list[int]:
    """The numbers of "4096,32768"; raises ValueError for anything else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} is {text!r}: give whole numbers separated by commas, e.g. 4096,32768") from None
    if not 1 <= min(numbers) <= max(numbers) <= most:
        raise ValueError(f"{name} is {text!r}: give numbers of 1 or more, at most {most}")
    return list(dict.fromkeys(numbers))


def load(
    path: Path | None,
    check: Callable[["PretrainedConfig"], object] = lambda config: None,
    context: Path | None = None,
    *,
    adapter: Path | None = None,
    numbers: NumberOptions = AS_GIVEN,
    check_tokenizer: Callable[["PreTrainedTokenizerBase"], object] = lambda tokenizer: None,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A converted model and its tokenizer from a folder, that of the package if None; on a GPU if there is one.

    With an `adapter`, `path` is the model before conversion: a folder, a GGUF file or a name on the hub. A GGUF file
    without one gets that of the package, which is refused unless it belongs to it. `check` gets the configuration
    before the weights are read, and raises ValueError for options that do not go with it; `check_tokenizer` gets the
    tokenizer. A `context` must have been read with this configuration and tokenizer, which is checked before the
    weights are read, and with these weights, which opening it checks; it decides the `numbers` that are not given.
    Raises ValueError where a file is missing or damaged, and for weights in 8 bits on a GPU.
    """
    from landmark.contexts.compatibility import check_model
    from landmark.hf.model_files import ModelFiles
    from landmark.hf.tokenizer import quiet_transformers

    files = ModelFiles.of(path, adapter)
    if files.adapter is None and not Path(files.source).is_dir():
        raise ValueError(f"no model at {files.source}: give the folder that `landmark train` or save_pretrained wrote")
    quiet_transformers()
    config = files.config()
    check(config)
    tokenizer = files.tokenizer()
    check_tokenizer(tokenizer)
    if context is not None:
        check_model(context, config, tokenizer)
        numbers = numbers.of_context(context)
    announce_compiling()
    return files.model(tokenizer, **numbers.keywords()), tokenizer


def open_to_ask(
    path: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", verify: Verification, **options: Any
) -> "Context":
    """A context that is asked and does not grow, with a bar while its blocks are brought to a GPU."""
    from landmark.contexts.context import Context

    with bytes_done("bringing blocks to the GPU") as progress:
        return Context.open(path, model, tokenizer, verify=verify, progress=progress, **options)


def load_either(
    source: str | None,
    adapter: Path | None,
    check: Callable[["PretrainedConfig"], object],
    numbers: NumberOptions = AS_GIVEN,
    *,
    check_tokenizer: Callable[["PreTrainedTokenizerBase"], object] = lambda tokenizer: None,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A model as it is, converted or not, and its tokenizer; on a GPU if there is one.

    Like `load`, but that without an `adapter` an ordinary model stays one, from a folder, a GGUF file or the hub. Its
    weights cannot be in 8 bits: raises ValueError.
    """
    from landmark.hf.config import is_converted
    from landmark.hf.loading import read_config, read_tokenizer, to_default_device
    from landmark.hf.plain import load_plain
    from landmark.hf.tokenizer import check_offsets, quiet_transformers

    config = None if source is None or adapter is not None else read_config(source)
    if source is None or config is None or is_converted(config):
        path = None if source is None else Path(source)
        return load(path, check, adapter=adapter, numbers=numbers, check_tokenizer=check_tokenizer)
    if numbers.weights is not None:
        raise ValueError(f"weights is {numbers.weights}, for converted models, and {source} is an ordinary one")
    quiet_transformers()
    check(config)
    tokenizer = read_tokenizer(source)
    check_offsets(tokenizer, source)
    check_tokenizer(tokenizer)
    return to_default_device(load_plain(source, dtype=numbers.keywords()["dtype"])), tokenizer


def is_packaged(model: Path | None) -> bool:
    """Whether a folder that commands are given, None for the default, is that of the model in the package."""
    from landmark.assets import model_path

    return model is None or model.resolve() == model_path().resolve()


def check_adapter(model: Path | None, adapter: Path | None) -> None:
    """Raises ValueError for an adapter without the model that it belongs to."""
    if adapter is not None and model is None:
        raise ValueError(f"adapter is {adapter}: give --model too, the model that it belongs to")


def here(context: Path) -> Path:
    """The folder of a context, or of the copy on this machine of a collection at a URL, which is fetched."""
    from landmark.contexts.remote import local_copy

    with bytes_done(f"fetching {shown(context)}") as progress:
        return local_copy(context, progress)


def model_of(context: Path, model: Path | None) -> Path | None:
    """The model for a context: `model`, or the folder that its manifest names; None is the package's.

    The maker of the context chose that name, so it is never one inside the context, nor one to download. For a GGUF
    file it is the installed one that the package's adapter belongs to. Where there is no such folder, the package's
    model serves if its configuration fits. Raises ValueError, asking for --model, otherwise. `load` and opening the
    context check that it is the model that read it.
    """
    from landmark.assets import adapted_path, model_path
    from landmark.contexts.compatibility import check_model
    from landmark.contexts.either import manifest_of
    from landmark.hf.loading import is_gguf, read_config

    recorded = manifest_of(context).header.get("model")
    if model is not None:
        return model
    if recorded and Path(recorded).is_dir():
        _check_outside(Path(recorded), context)
        return Path(recorded)
    if recorded and is_gguf(recorded):
        return adapted_path()
    try:
        check_model(context, read_config(model_path()))
    except ValueError as error:
        named = f"{recorded}, and there is no such folder" if recorded else "a model that it does not name"
        raise ValueError(f"{context} was read by {named}: give --model, the folder of that model") from error
    return None


def _check_outside(model: Path, context: Path) -> None:
    """Raises ValueError if the folder of a model, or a file in it, is part of a context, after resolving links."""
    inside = context.resolve()
    for path in (model, *model.iterdir()):
        if path.resolve().is_relative_to(inside):
            raise ValueError(
                f"{context} names a model inside itself, {path}, which is not loaded: give --model, the folder of the"
                " model that read it"
            )
