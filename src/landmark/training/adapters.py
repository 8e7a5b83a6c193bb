"""LoRA adapters through peft: added to a converted model for training, and merged at the end."""

import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, PeftModelForCausalLM, prepare_model_for_kbit_training
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from landmark.hf import convert
from landmark.hf.adapter_file import FILE, describe
from landmark.hf.config import landmark_settings, text_config
from landmark.training.plan import Lora


class AdaptedModel(PeftModelForCausalLM):
    """A converted model that trains only its adapters and the embedding of its landmark."""

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """Saves the adapters and the landmark's row.

        peft would save all embeddings, because conversion has added a row to the vocabulary.
        """
        super().save_pretrained(*arguments, **options | {"save_embedding_layers": False})


def adapt(model: PreTrainedModel, lora: Lora, *, base: str) -> AdaptedModel:
    """Adds adapters to a converted model and freezes all other parameters but the landmark's row.

    `base` is the folder or name of the model, recorded in the adapter. Raises ValueError if none of `lora.targets` is a
    module of the model.
    """
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets) or "all-linear",
        trainable_token_indices=[landmark_settings(model.config).landmark_id],
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft uses a name that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = AdaptedModel(model, config)
    convert(model)  # peft replaced a tied head, which must not predict the landmark
    return adapted


def name_base(model: AdaptedModel, folder: Path) -> None:
    """Records in the adapter saved in `folder` which model it belongs to, for `landmark.load_adapter`.

    Adapters of a 4-bit model carry no such record: the model is later loaded with other weights.
    """
    base: Any = model.get_base_model()
    if getattr(base, "is_quantized", False):
        return
    config: Any = model.peft_config["default"]
    tensors = load_file(folder / FILE)
    described = describe(base, tensors, text_config(base.config).landmark, config.lora_alpha / config.r)
    save_file(tensors, folder / FILE, {"format": "pt", **described})


def merged(model: AdaptedModel, folder: Path) -> PreTrainedModel:
    """The model with its adapters, saved in `folder`, merged into its weights.

    4-bit weights are dequantized first, so that the sum is not rounded to 4 bits again and the merged model computes
    what was trained.
    """
    if not getattr(model.get_base_model(), "is_quantized", False):
        return model.merge_and_unload()  # type: ignore[operator]
    plain: Any = model.unload()  # type: ignore[operator]
    plain.dequantize()
    return PeftModel.from_pretrained(plain, folder).merge_and_unload()  # type: ignore[operator]
