"""The files of a converted model: config and tokenizer are read and checked first, for the weights may take minutes."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from landmark import assets
from landmark.hf.adapter_file import adapted_config, load_adapter
from landmark.hf.config import landmark_settings
from landmark.hf.convert import from_pretrained
from landmark.hf.loading import is_gguf, read_config, read_tokenizer, to_default_device
from landmark.hf.tokenizer import check_offsets, checked


@dataclass(frozen=True)
class ModelFiles:
    """A converted model, or with an `adapter` the one before conversion: a folder, a GGUF file or a hub id."""

    source: str
    adapter: str | PathLike[str] | None

    @classmethod
    def of(cls, source: str | PathLike[str] | None, adapter: str | PathLike[str] | None = None) -> "ModelFiles":
        """Those of the package's model if `source` is None; a GGUF file without an adapter gets that of the package."""
        source = str(assets.model_path() if source is None else source)
        return cls(source, assets.adapter_path() if adapter is None and is_gguf(source) else adapter)

    def config(self) -> PretrainedConfig:
        """The config of the converted model; raises ValueError where there is none."""
        config = read_config(self.source) if self.adapter is None else adapted_config(self.source, self.adapter)
        landmark_settings(config)
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; raises ValueError where there is none, or one without character offsets."""
        tokenizer = read_tokenizer(self.source)
        check_offsets(tokenizer, self.source)
        return tokenizer

    def model(self, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreTrainedModel:
        """The converted model, on a GPU if there is one; `options` are those of `landmark.from_pretrained`.

        Raises ValueError where files are missing or damaged, and where `tokenizer` does not go with the model.
        """
        if self.adapter is None:
            loaded = from_pretrained(self.source, **options)
        else:
            loaded = load_adapter(self.source, self.adapter, **options)
        model = to_default_device(loaded)
        checked(tokenizer, self.source, model)
        return model
