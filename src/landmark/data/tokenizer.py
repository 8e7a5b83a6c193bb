"""Training of a byte-level BPE tokenizer that transformers' AutoTokenizer loads."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from landmark.data.text import read_documents

PAD = "<pad>"
EOS = "<eos>"
SPECIAL_TOKENS = (PAD, EOS)
SMALLEST_VOCAB = 256 + len(SPECIAL_TOKENS)


def train_tokenizer(
    sources: Sequence[str], vocab_size: int, out: str | Path, *, show_progress: bool = False
) -> Tokenizer:
    """Trains a tokenizer on `sources` (see `read_documents`) and saves it in the folder `out`.

    All 256 bytes are tokens, so every text round-trips. Digits are split first, one token each: text before a number
    has the same tokens whether or not the number follows, so a prompt may end right before digits. Landmarks are not
    tokens: a converted model adds an embedding row behind the tokenizer's ids.

    Raises ValueError if `vocab_size` is too small for the bytes, if the texts cannot fill it, or if `out` already holds
    a tokenizer.
    """
    out = Path(out)
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(f"vocabulary size {vocab_size} is too small; at least {SMALLEST_VOCAB} are needed")
    if (out / "tokenizer.json").exists():
        raise ValueError(f"{out} already holds a tokenizer; choose another folder or delete it")
    if not sources:
        raise ValueError("there is no text to train a tokenizer on; name at least one file")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    texts = (document.text for source in sources for document in read_documents(source))
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"the text yields only {tokenizer.get_vocab_size()} tokens, not {vocab_size}; "
            "give more text or ask for a smaller vocabulary"
        )
    save_tokenizer(tokenizer, out)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` of transformers."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))
