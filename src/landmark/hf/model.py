"""The class of a converted model, and the landmark's row in its vocabulary.

The landmark's embedding is normally the last row, which `config.vocab_size` and logits leave out: losses, sampling and
resizing see ordinary tokens only. A row inside the vocabulary may serve instead; it has a logit far below all others.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from landmark.hf.attention import NAME
from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import UnsupportedRelease, cache_argument, rename_cache_argument, require
from landmark.hf.config import is_converted, landmark_settings, text_config
from landmark.hf.finite import check_logits
from landmark.hf.in_front import class_behind, put_in_front, reduced
from landmark.hf.int8 import refuse_8_bits
from landmark.hf.refusals import check_rows_can_be_added
from landmark.limits import is_whole
from landmark.settings import LandmarkSettings

_CACHE_IMPLEMENTATION = "cache_implementation"


class LandmarkMixin:
    """Methods that a converted model overrides; `install_mixin` puts them in front of the model's own class."""

    SIGNED = ("forward", "generate", "prepare_inputs_for_generation")

    def __new__(cls, *args: Any, **options: Any) -> Any:
        if not args and not options:  # a copy; its attributes are set afterwards
            return object.__new__(cls)
        # A new model constructed from a converted one's class is not converted yet: it gets the original class.
        plain = original_class(cls)
        model = plain.__new__(plain)
        model.__init__(*args, **options)
        return model

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(LandmarkMixin, self, super().__reduce_ex__(protocol))

    def forward(self, *args: Any, **options: Any) -> Any:
        # Not in hooks, because adapters call this method directly.
        model: Any = self
        _check_rows(model)
        hook_head(model)
        options = rename_cache_argument(model, options)
        caches = [value for value in (*args, *options.values()) if isinstance(value, LandmarkCache)]
        with ExitStack() as forwards:
            was_read = [forwards.enter_context(one.in_forward()) for one in caches]
            output = super().forward(*args, **options)  # type: ignore[misc]
            for one, is_read in zip(caches, was_read, strict=True):
                if not is_read():
                    name = type(model).__name__
                    raise UnsupportedRelease(f"{name} read nothing through the cache it was given, or more than once")
                if not one.settings.reading.allow_nonfinite:
                    check_logits(_logits_of(output))
        return _finite_losses(model, output)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resizes the embeddings to `new_num_tokens` ordinary tokens; the landmark's row stays the last.

        Returns the embeddings, which have one row more. Raises ValueError where the landmark's row would be lost.
        """
        model: Any = self
        resize = super().resize_token_embeddings  # type: ignore[misc]
        if new_num_tokens is None and pad_to_multiple_of is None:
            return resize()
        config = text_config(model.config)
        settings, ordinary = landmark_settings(config), config.vocab_size
        wanted = ordinary if new_num_tokens is None else new_num_tokens
        _check_resizable(model, settings, wanted)
        if not behind_vocabulary(config):
            resize(wanted, pad_to_multiple_of, mean_resizing)
            store_settings(model, settings)
            return model.get_input_embeddings()
        landmark = [part[ordinary].detach().clone() for part in rows_of_tokens(model)]
        with _preserve_random_state(model):
            resize(ordinary, mean_resizing=False)
        resize(wanted, pad_to_multiple_of, mean_resizing)
        with _preserve_random_state(model):
            ordinary = len(model.get_input_embeddings().weight)
            resize(ordinary + 1, mean_resizing=False)
        with torch.no_grad():
            for part, row in zip(rows_of_tokens(model), landmark, strict=True):
                part[ordinary] = row
        store_settings(model, replace(settings, landmark_id=ordinary))
        return model.get_input_embeddings()

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **options: Any) -> None:
        names = attn_implementation.values() if isinstance(attn_implementation, dict) else [attn_implementation]
        if any(name != NAME for name in names):
            raise ValueError(
                f"the attention of a converted model is {NAME!r}, not {attn_implementation!r}: load the model again and"
                " leave landmark.convert out, or write one without landmarks by landmark.save_plain"
            )
        super().set_attn_implementation(attn_implementation, *args, **options)  # type: ignore[misc]

    def set_input_embeddings(self, value: nn.Module) -> None:
        model: Any = self
        rows, given = len(model.get_input_embeddings().weight), len(value.weight)  # type: ignore[arg-type]
        # transformers resizes in place, and then sets the same module again.
        if value is not model.get_input_embeddings() and given != rows:
            raise ValueError(_wrong_embeddings(given, rows))
        super().set_input_embeddings(value)  # type: ignore[misc]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        model: Any = self
        _check_head(model, new_embeddings)
        super().set_output_embeddings(new_embeddings)  # type: ignore[misc]
        hook_head(model)

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """Saves the model so that only `landmark.from_pretrained` loads it.

        The saved config has one token less than the embeddings have rows. transformers refuses these sizes; otherwise
        it would load a model that reads its landmark as a token and has no blocks. Raises ValueError for a model whose
        weights are in 8 bits.
        """
        model: Any = self
        refuse_8_bits(model, "this model cannot be saved")
        config = text_config(model.config)
        if behind_vocabulary(config):
            super().save_pretrained(*args, **options)  # type: ignore[misc]
            return
        rows, settings = config.vocab_size, config.landmark
        config.vocab_size, config.landmark = rows - 1, settings | {"rows": rows}
        try:
            super().save_pretrained(*args, **options)  # type: ignore[misc]
        finally:
            config.vocab_size, config.landmark = rows, settings

    def prepare_inputs_for_generation(self, *args: Any, **options: Any) -> dict[str, Any]:
        # Not the method of the model: some change the cache (Phi-3 drops it beyond its original trained range).
        return GenerationMixin.prepare_inputs_for_generation(self, *args, **options)  # type: ignore[arg-type]

    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
        """As in transformers; the cache may be passed as `past_key_values` or `cache` under every release.

        Raises ValueError for a prompt that does not begin with the tokens that the cache has read, and for any other
        kind of cache.
        """
        model: Any = self
        options = rename_cache_argument(model, options)
        wanted = [
            options.get(_CACHE_IMPLEMENTATION),
            getattr(options.get("generation_config"), _CACHE_IMPLEMENTATION, None),
        ]
        if set(wanted) - {None, "dynamic"}:
            raise ValueError(
                f"cache_implementation is {wanted[0] or wanted[1]!r}: a converted model reads through a"
                " landmark.LandmarkCache, whose device_budget and host_budget bound the memory that it takes; leave"
                " cache_implementation out"
            )
        # The model may have another kind of cache stored (Gemma has).
        model.generation_config.cache_implementation = None
        prompt = options.get("input_ids") if inputs is None else inputs
        cache = options.get(cache_argument(model))
        if isinstance(cache, LandmarkCache) and isinstance(prompt, Tensor):
            cache.check_continues(prompt)
        return super().generate(inputs, **options)  # type: ignore[misc]


def install_mixin(model: PreTrainedModel) -> None:
    """Makes the class of `model` a subclass of itself with `LandmarkMixin` in front, unless it is one already."""
    if isinstance(model, LandmarkMixin):
        return
    put_in_front(LandmarkMixin, model)
    if "_old_forward" in vars(model):  # accelerate has bound the method of the class before
        model._old_forward = MethodType(type(model).forward, model)  # type: ignore[assignment]


def original_class(converted: type) -> type[PreTrainedModel]:
    """The class of the model before conversion."""
    return class_behind(LandmarkMixin, converted)


# Which rows of the vocabulary are ordinary tokens.


def ordinary_rows(rows: int, landmark_id: int | None) -> int:
    """Rows that are ordinary tokens, of `rows`: all but the landmark's if it is the last; one inside counts as well."""
    return rows - 1 if landmark_id == rows - 1 else rows


def ordinary_tokens(model: PreTrainedModel) -> int:
    """Number of ordinary tokens of a model, converted or not, by the rows of its embeddings."""
    landmark_id = landmark_settings(model.config).landmark_id if is_converted(model.config) else None
    return ordinary_rows(len(model.get_input_embeddings().weight), landmark_id)  # type: ignore[arg-type]


def behind_vocabulary(config: PretrainedConfig) -> bool:
    """Whether the landmark's row comes after the `config.vocab_size` ordinary tokens; otherwise it is one of them."""
    return config.landmark["landmark_id"] >= config.vocab_size


def saved_rows(config: PretrainedConfig) -> int:
    """Rows of the embeddings of a converted model with `config`, of a model in memory or of a saved one."""
    return config.landmark.get("rows", max(config.vocab_size, config.landmark["landmark_id"] + 1))


def store_settings(model: PreTrainedModel, settings: LandmarkSettings) -> None:
    """Stores settings and the number of ordinary tokens in the config, and keeps the landmark out of the logits."""
    base: Any = model.base_model
    config, rows = text_config(model.config), len(base.get_input_embeddings().weight)
    config.landmark = settings.to_dict()
    config.vocab_size = ordinary_rows(rows, settings.landmark_id)
    if hasattr(model, "vocab_size"):
        model.vocab_size = config.vocab_size  # type: ignore[assignment]
    hook_head(model, replace_hook=True)


@dataclass(frozen=True)
class OrdinaryLogits:
    """Hook on the head, of `rows` rows: the landmark is never predicted.

    Where its row is the last, logits end before it. A row among ordinary ones gets the lowest number there is.
    """

    landmark_id: int
    rows: int

    def __call__(self, head: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        columns, last = logits.shape[-1], ordinary_rows(self.rows, self.landmark_id) < self.rows
        if columns != self.rows and not (last and columns == self.landmark_id):
            raise ValueError(_wrong_head(columns, self.rows))
        if last:
            return logits[..., : self.landmark_id].contiguous()
        logits[..., self.landmark_id] = torch.finfo(logits.dtype).min
        return logits


def hook_head(model: PreTrainedModel, *, replace_hook: bool = False) -> None:
    """Hooks `OrdinaryLogits` to the head, also after the head was replaced or wrapped."""
    head: Any = model.get_output_embeddings()
    if not replace_hook and any(isinstance(hook, OrdinaryLogits) for hook in head._forward_hooks.values()):
        return
    _check_head(model, head)
    for part in head.modules():  # a wrapper needs all logits of the head inside it
        for key, hook in list(part._forward_hooks.items()):
            if isinstance(hook, OrdinaryLogits):
                del part._forward_hooks[key]
    config = text_config(model.config)
    head.register_forward_hook(OrdinaryLogits(config.landmark["landmark_id"], saved_rows(config)))


def _check_rows(model: PreTrainedModel) -> None:
    """Raises ValueError where the embeddings were replaced by others without a row for the landmark."""
    rows, wanted = getattr(model.get_input_embeddings(), "num_embeddings", None), saved_rows(text_config(model.config))
    if rows is not None and rows != wanted:
        raise ValueError(_wrong_embeddings(rows, wanted))


def _wrong_embeddings(given: int, rows: int) -> str:
    return (
        f"embeddings of {given} rows for a converted model of {rows}, the landmark's among them: give as many, or"
        " change their number with resize_token_embeddings"
    )


def _check_head(model: PreTrainedModel, head: Any) -> None:
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if isinstance(head, nn.Linear) and head.out_features != rows:
        raise ValueError(_wrong_head(head.out_features, rows))


def _wrong_head(given: int, rows: int) -> str:
    return (
        f"a head of {given} rows for a converted model whose embeddings have {rows}, the landmark's among them: give as"
        " many (the landmark's never reaches the logits), or change both with resize_token_embeddings"
    )


# Distance in nats of the landmark's logit below all others together: exp(-100) is less than the resolution of float32,
# and losses that average over the vocabulary stay finite and close to those of ordinary tokens.
_FAR_BELOW = 100.0


def _logits_of(output: Any) -> Tensor:
    return next(x for x in output if x.dim()) if isinstance(output, tuple) else output.logits


def _finite_losses(model: PreTrainedModel, output: Any) -> Any:
    """Raises the logit of a landmark among ordinary rows to a finite one, for label smoothing and similar losses.

    Its log-probability is constant, so it has no gradient.
    """
    config = text_config(model.config)
    if behind_vocabulary(config):
        return output
    is_landmark = torch.arange(config.vocab_size) == config.landmark["landmark_id"]

    def raised(logits: Tensor) -> Tensor:
        column = is_landmark.to(logits.device)
        others = logits.masked_fill(column, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.where(column, others - _FAR_BELOW, logits)

    if isinstance(output, tuple):
        index = 0 if output[0].dim() else 1  # after the loss
        return (*output[:index], raised(output[index]), *output[index + 1 :])
    output.logits = raised(output.logits)
    return output


def check_tokens(config: PretrainedConfig, ids: Tensor, real: Tensor) -> None:
    """Raises ValueError for `ids [B,T]` that contain the landmark, or a row after it, as an ordinary token, or none.

    Padding, where `real [B,T]` is False, may be anything. On a GPU the kernel fails instead (`compat.require`).
    """
    landmark_id = config.landmark["landmark_id"]
    require((ids >= 0) | ~real, "token ids below 0: give the ids that the model's tokenizer makes")
    foreign = (ids >= landmark_id if behind_vocabulary(config) else ids == landmark_id) & real
    require(
        ~foreign,
        f"ids of the landmark ({landmark_id}) among ordinary tokens: after tokens were added to a tokenizer, call"
        " model.resize_token_embeddings(len(tokenizer)); a text must not contain landmarks",
    )


_WARNED: WeakSet[nn.Module] = WeakSet()  # base models that `warn_untrained` has warned of


def warn_untrained(base: nn.Module) -> None:
    """Warns once that a model was not trained with landmarks, so that reading through memory will not help it."""
    config: Any = text_config(base.config)  # type: ignore[arg-type]
    if config.landmark.get("trained_tokens") != 0 or base in _WARNED:
        return
    _WARNED.add(base)
    warnings.warn(
        f"this {config.model_type} model has not learnt landmarks, so its predictions about a text read through memory"
        " are poor: train it with `landmark train --model MODEL --texts FILES --out RUN` (docs/finetuning.md); if"
        " it was trained otherwise, call landmark.convert(model, trained_tokens=N)",
        stacklevel=3,
    )


def rows_of_tokens(model: PreTrainedModel) -> list[Tensor]:
    """Parameters with one row per token: embeddings, and the head's weight and bias."""
    parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = [part.weight for part in parts]
    return found if getattr(parts[1], "bias", None) is None else [*found, parts[1].bias]


def _check_resizable(model: PreTrainedModel, settings: LandmarkSettings, wanted: Any) -> None:
    refuse_8_bits(model, "the vocabulary of this model cannot be resized")
    config = text_config(model.config)
    if not is_whole(wanted, 1):
        raise ValueError(f"new_num_tokens is {wanted!r}: give the number of ordinary tokens, 1 or more")
    if not behind_vocabulary(config) and wanted <= settings.landmark_id:
        raise ValueError(
            f"{wanted} rows would leave out the landmark's, {settings.landmark_id}: keep at least one more"
        )
    check_rows_can_be_added(model)


@contextmanager
def _preserve_random_state(model: PreTrainedModel) -> Iterator[None]:
    """Restores the random state afterwards, so that only rows of new tokens consume random numbers."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
