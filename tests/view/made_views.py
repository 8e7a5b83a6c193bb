"""Views for these tests: of a tiny model, and made up, with tokenizers of the kinds that models have."""

import json

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import landmark
from landmark.hf.reader import answer
from landmark.hf.tokenizer import EncodedText, bos_tokens, encode
from landmark.view.gather import ANSWER, DOCUMENT, PROMPT, Text, Token, View

# Characters of two, three and four bytes, some of which no tokenizer of these tests has learnt, and a family of them.
LETTERS = (
    "the sea was calm and Jim looked at it ; na\u00efve caf\u00e9, \u6f22\u5b57 and "
    "\U0001f600\U0001f468\u200d\U0001f469 \u0645\u0631\u062d\u0628\u0627 for a while\n"
)
# What a page must show and never obey.
HOSTILE = (
    "</script><script>throw new Error('obeyed')</script> <img src=x onerror=alert(1)> <!-- & &lt; {{script}} \\u003c"
    " \x00\x07\x1b[31m\x9b \u2028\u2029 \u202eevil\u202c \u2066x\u2069 \u200f \ufeff ${1} `x` \r\n\t\U0010ffff "
)


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["the sea was calm and Jim looked at it for a long while"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
        ),
    )
    return made


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: metaspace, and bytes for unknown characters."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        ["the sea was calm and Jim looked at it for a long while"],
        trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


TOKENIZERS = {"byte_level": byte_level, "sentencepiece": sentencepiece}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[kind](), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def made_up(tokenizer: PreTrainedTokenizerFast, *documents: tuple[str, str]) -> tuple[View, torch.Tensor]:
    """A view with random reads of documents (name, text), and the ids of all tokens in it."""
    rng, block_size = np.random.default_rng(0), 3
    texts, ids, first = [], [], 0
    encoded: list[tuple[str, str, EncodedText]] = [
        (name, DOCUMENT, (bos_tokens(tokenizer) if not i else encode(tokenizer, "")) + encode(tokenizer, text))
        for i, (name, text) in enumerate(documents)
    ]
    encoded.append((PROMPT, PROMPT, encode(tokenizer, " Jim looked", continues=True)))
    encoded.append((ANSWER, ANSWER, encode(tokenizer, " at the calm sea", continues=True)))
    for name, kind, text in encoded:
        offsets = np.array(text.offsets, dtype=np.int64).reshape(-1, 2)
        texts.append(Text(name, kind, text.text, offsets, first))
        ids.append(text.ids)
        first += len(text)
    last = texts[-1]
    tokens = tuple(
        Token(last.first + i, 7, last.text[start:stop], "name") for i, (start, stop) in enumerate(last.offsets.tolist())
    )
    shape = len(tokens), 3, 2, 4  # layers, heads, blocks of each
    blocks = rng.integers(-1, last.first // block_size, shape)
    gates = np.exp(rng.normal(size=(*shape[:3], 5)))
    gates[..., :4][blocks < 0] = 0
    gates /= gates.sum(-1, keepdims=True)
    arrays = blocks, gates[..., :4], gates[..., 4]
    return View("model", block_size, tuple(texts), tokens, (0, 1, 3), *arrays), torch.cat(ids)


def traced(model, tokenizer, text: str, prompt: str, count: int):
    """A text and a prompt, `count` tokens that the model generates after them, and the cache that traced it."""
    before, asked = encode(tokenizer, text), encode(tokenizer, prompt, continues=True)
    cache = landmark.read(model, before.ids)
    cache.start_trace()
    return before, asked, answer(model, asked.ids, cache, max_new_tokens=count), cache
