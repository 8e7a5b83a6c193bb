"""Models that cannot be converted: checks that run before anything of a model is changed, with reason and remedy."""

from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from landmark.hf.config import text_config


def check_model(model: object) -> None:
    """Raises ValueError, naming the reason and the remedy, for anything but a decoder whose weights are loaded."""
    name = type(model).__name__
    if (wrapped := _inside(model)) is not None:
        inner, what = wrapped
        raise ValueError(
            f"{name} wraps the model ({what}): convert what is inside, landmark.convert({inner}), or convert first and"
            " wrap then"
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"convert takes a transformers model, not {name}")
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise ValueError(f"{name} is not a decoder with a language-model head: landmarks need a causal language model")
    if text_config(model.config) is not model.config:
        raise ValueError(_around_a_text_model(model, name))
    _check_weights(model, name)


def check_parts(model: PreTrainedModel) -> None:
    """Raises ValueError for latent attention, positions that are not rotary, and attention that cannot be replaced."""
    name, config, base = type(model).__name__, text_config(model.config), model.base_model
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(f"{name} has latent attention, which keeps no plain keys that landmarks could stand for")
    if getattr(base, "rotary_emb", None) is None:
        raise ValueError(f"{name} has no rotary positions{_instead_of_rotary(model)}: landmarks need a rotary decoder")
    if not model._can_set_attn_implementation():
        raise ValueError(f"{name} {_OWN_CODE}: landmarks need one that transformers can exchange")


_OWN_CODE = "computes attention by code of its own"


def _inside(model: object) -> tuple[str, str] | None:
    """The expression for the model inside a wrapper, and the kind of wrapper; None for anything else."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "PeftModel" in kinds:
        return "model.get_base_model()", "adapters of peft"
    if "BaseTuner" in kinds:
        return "model.model", "adapters of peft"
    if "OptimizedModule" in kinds:
        return "model._orig_mod", "torch.compile"
    if kinds & {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"}:
        return "model.module", "for several devices"
    if "Pipeline" in kinds:
        return "pipeline.model", "a pipeline"
    return None


def _around_a_text_model(model: PreTrainedModel, name: str) -> str:
    text = text_config(model.config)
    reason = f"{name} is a model of several kinds of input around a text model ({text.model_type})"
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return (
            f"{reason}, and landmarks read text alone: build that with AutoModelForCausalLM.from_config("
            "model.config.get_text_config()), load its weights, and convert it"
        )
    return f"{reason}, of which transformers has no model by itself: landmarks read text alone"


def _check_weights(model: PreTrainedModel, name: str) -> None:
    if not any(weight.is_meta for weight in model.parameters()):
        return
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ValueError(
            f"weights of {name} are offloaded: load it without device_map, or with one that keeps everything on devices"
        )
    raise ValueError(f"{name} is on the meta device and has no weights: load them first, by from_pretrained")


def _instead_of_rotary(model: PreTrainedModel) -> str:
    """What a model without a rotary module has instead, as far as its parts show."""
    base, config = model.base_model, model.config
    if config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False):
        return " but ALiBi, distances subtracted from scores"
    if any(hasattr(module, "rotary_dim") for module in base.modules()):
        return f" that transformers could hand to attention: it rotates, and {_OWN_CODE}"
    names = [part for name, _ in base.named_modules() for part in name.split(".")[-1:]]
    if any(name in ("wpe", "embed_positions", "position_embeddings") for name in names):
        return " but an embedding of each position"
    if any(name == "rotary_emb" for name in names):
        return " that all layers share: they rotate each by a module of their own"
    if not any("attention" in type(module).__name__.lower() for module in base.modules()):
        return " and no attention, but layers that carry a state"
    return ""


def check_rows_can_be_added(model: PreTrainedModel) -> None:
    """Raises ValueError for wrapped embeddings or a wrapped head, which cannot be resized."""
    parts: list[nn.Module | None] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for part in parts:
        if not isinstance(part, nn.Embedding | nn.Linear):
            raise ValueError(
                f"embeddings wrapped in a {type(part).__name__} cannot be resized: convert and resize the model first,"
                " then add adapters"
            )
