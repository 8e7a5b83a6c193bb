"""What a text says is text, and a long one gives the tokens that it gives in one piece."""

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from landmark.data import encoder, text
from landmark.data.encoder import TextEncoder
from landmark.data.tokens import tokenize

SPECIAL = ["<unk>", "<s>", "</s>"]
LESSON = [
    "the whale of the sea, the ship and 48213 men of it; wording, a word or another.\n\n\t aa aaa\r\n é 你 😀"
] * 3
# As Llama 3 does it, and as those do that group digits from the right.
LLAMA_3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|[^\p{N}]+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(first, normalizer=None, post_processor=None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = first, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    if post_processor is not None:
        made.post_processor = post_processor
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LESSON,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False),
    )
    return made


def llama_2() -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(LESSON, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def unigram(scheme: str, **options) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, **options)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    made.train_from_iterator(
        LESSON, trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    return made


def words() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        LESSON, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    )
    return made


def split(pattern: str):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


KINDS = {
    "llama 2": llama_2,
    "llama 3": lambda: byte_level(split(LLAMA_3), normalizers.NFC()),
    "from the right": lambda: byte_level(split(FROM_THE_RIGHT)),
    "no words": lambda: byte_level(BYTES),
    "prefix and trimmed": lambda: byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=True), None, processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    ),
    "stripped": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Strip()),
    "unigram first": lambda: unigram("first", split=False),
    "unigram always": lambda: unigram("always"),
    "word pieces": words,
}


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    """Each kind with tokens added, and told to cut and to fill up."""
    found = {name: make() for name, make in KINDS.items()}
    for tokenizer in found.values():
        tokenizer.add_tokens([AddedToken("whale-boat"), AddedToken("the sea", lstrip=True)])
        tokenizer.enable_truncation(50)
        tokenizer.enable_padding(length=60, pad_id=0, pad_token="<unk>")
    return found


def whole(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """What the tokenizer itself gives for the text in one piece."""
    other = Tokenizer.from_str(tokenizer.to_str())
    other.no_truncation()
    other.no_padding()
    other.encode_special_tokens = True
    found = other.encode(text, add_special_tokens=False)
    return found.ids, found.offsets


def texts_to_cut() -> dict[str, str]:
    rng = random.Random(0)
    pieces = [
        "the whale ",
        "whale-boat",
        "the sea",
        "\r\n",
        "\n\n",
        "   ",
        "😀",
        "👩‍👧",
        "é",
        "e\u0301",
        "你好",
        "123456789",
        "a",
    ]
    return {
        "mixed": "".join(rng.choice(pieces) for _ in range(900)),
        "letters": "".join(rng.choice("ethawl") for _ in range(2500)),
        "one letter": "a" * 2501,
        "digits": "".join(rng.choice("0123456789") for _ in range(2503)),
        "spaces": " " * 2000 + "x" + "\n" * 2000,
        "emoji": "👩‍👧😀" * 600,
        "unknown": "\U0001f9ff" * 1500,
        "spaces around": "  \n words of the sea " * 100 + "\n ",
        "nothing": "",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_tokens_of_the_whole(made, kind, monkeypatch):
    monkeypatch.setattr(text, "PIECE_CHARACTERS", 450)
    monkeypatch.setattr(encoder, "OVERLAP", 60)
    texts = TextEncoder(made[kind])
    for name, given in texts_to_cut().items():
        found, (ids, offsets) = texts.encode(given), whole(made[kind], given)
        assert found.ids.tolist() == ids, name
        assert [tuple(pair) for pair in found.offsets.tolist()] == offsets, name
    assert len(list(texts.pieces(texts_to_cut()["mixed"]))) > 3


def test_one_long_line_is_tokenized_in_pieces(made):
    line = "".join(random.Random(1).choice("ethawl") for _ in range(300_000))
    pieces = list(TextEncoder(made["llama 2"]).pieces(line))
    assert len(pieces) == 2
    assert sum(map(len, pieces)) == len(whole(made["llama 2"], line)[0])
    assert pieces[-1].offsets[-1].tolist() == [
        299_999 - (pieces[-1].offsets[-1][1] - pieces[-1].offsets[-1][0]) + 1,
        300_000,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_named_in_a_text_are_text(made, kind):
    said = "a </s> and <s></s>, <unk>\n</s>the sea</s>"
    found = TextEncoder(made[kind]).encode(said)
    assert not {1, 2} & set(found.ids.tolist())
    assert found.offsets[-1, 1] == len(said)
    alone = TextEncoder(made[kind]).encode("</s>")
    assert len(alone), "it is not left out"
    assert 2 not in alone.ids


def test_special_tokens_that_are_words_of_the_vocabulary():
    known = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "sea": 2}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known.add_special_tokens(["<unk>", "</s>"])
    assert TextEncoder(known).encode("sea </s> boat sea").ids.tolist() == [2, 0, 0, 2]
    merged = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    merged.add_special_tokens(["ab"])
    with pytest.raises(ValueError, match="reads 'ab' in a text as its special token 2"):
        TextEncoder(merged).encode("bab")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word pieces"])
@pytest.mark.parametrize(
    "prompt", ["rd behind", " is", "\n\nWhat is it? It is ", "48213", "whale-boat x", "é😀", "  two"]
)
def test_what_continues_a_text_joins_word_for_word(made, kind, prompt):
    texts, before = TextEncoder(made[kind]), "The answer is in the wo"
    behind = texts.encode(prompt, continues=True)
    together = texts.encode(before).ids.tolist() + behind.ids.tolist()
    assert made[kind].decode(together, skip_special_tokens=False) == made[kind].decode(
        texts.encode(before + prompt).ids.tolist(), skip_special_tokens=False
    )
    assert (behind.offsets >= 0).all()
    assert behind.offsets[-1, 1] == len(prompt.rstrip()) or behind.offsets[-1, 1] == len(prompt)


def test_the_tokenizer_is_left_as_it_was(made):
    before = made["llama 2"].to_str()
    TextEncoder(made["llama 2"]).encode("</s>", continues=True)
    assert made["llama 2"].to_str() == before
    assert not made["llama 2"].encode_special_tokens


def test_training_reads_all_of_a_text(made, tmp_path):
    (tmp_path / "text.txt").write_text("the whale </s> " * 100)
    (tmp_path / "short.txt").write_text("sea")
    sources = [str(tmp_path / name) for name in ("text.txt", "short.txt")]
    for number, tokenizer in enumerate(made.values()):
        file = tokenize(sources, tokenizer, tmp_path / str(number), eos_id=2)
        expected = [whole(tokenizer, text)[0] for text in ("the whale </s> " * 100, "sea")]
        if 2 not in expected[0]:  # those that split no words take it from their vocabulary
            assert file.ids.tolist() == [*expected[0], 2, *expected[1], 2]
        assert (file.ids == 2).sum() == 2


def test_templates_of_ours_name_special_tokens(made):
    for kind in ("llama 2", "llama 3"):
        found = TextEncoder(made[kind], template=True).encode("</s>the whale</s>" * 60, continues=True)
        assert (found.ids == 2).sum() == 120
        assert found.offsets[0].tolist() == [0, 4]
