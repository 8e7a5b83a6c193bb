"""A converted model as the ordinary transformers model that it is without landmarks."""

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from landmark.files import written_whole
from landmark.hf.config import landmark_settings
from landmark.hf.convert import from_pretrained
from landmark.hf.model import ordinary_tokens


def save_plain(folder: str | Path, out: str | Path) -> None:
    """Saves the converted model in `folder`, with its tokenizer, to `out` as a model that knows nothing of landmarks.

    Its weights are the same but for the landmark's row, which goes. Raises ValueError where that is not the last row
    of the vocabulary: then it is a token of the model's own.
    """
    model = from_pretrained(folder)
    landmark_id = landmark_settings(model.config).landmark_id
    ordinary = ordinary_tokens(model)
    if landmark_id != ordinary:
        raise ValueError(
            f"the landmark of {folder} is row {landmark_id} of {ordinary}, a token of the model: leave it there"
        )
    config = AutoConfig.from_pretrained(folder)
    delattr(config, "landmark")
    config.vocab_size = landmark_id
    untouched = AutoModelForCausalLM.from_config(config)
    state = model.state_dict()
    wanted = untouched.state_dict()
    untouched.load_state_dict({name: state[name][: len(value)] for name, value in wanted.items()})
    with written_whole(Path(out)) as partial:
        untouched.save_pretrained(partial)
        AutoTokenizer.from_pretrained(folder).save_pretrained(partial)


def load_plain(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without landmarks in float32, and its tokenizer, from one folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="sdpa")
    return model, AutoTokenizer.from_pretrained(folder)
