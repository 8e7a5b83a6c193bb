"""Ways to attend, against forwards over the whole prompt."""

import copy
import itertools
import json
import warnings

import pytest
import torch
from chat_tokenizer import chat_tokenizer
from transformers import AutoModelForCausalLM

import landmark
from landmark.evaluation.answering import CHUNK, SINKS, Attending
from landmark.evaluation.asking import Asker, Cell, contents, order, summaries
from landmark.evaluation.bm25 import Passages
from landmark.evaluation.recall import NAMES, recall
from landmark.evaluation.tasks import Draft, Hidden, Prompt, Prompts, Task
from landmark.hf.plain import stretched
from landmark.hf.rereading import Rereading
from landmark.hf.retrieval_heads import RetrievalHeads
from landmark.hf.trace import Span
from landmark.readers.sinks import Sinks

HEADS = RetrievalHeads(((1, 2),))
SHAPE = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
}
IDS = torch.randint(3, 250, (700,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(sharp_llama):
    return sharp_llama(**SHAPE)


@pytest.fixture(scope="module")
def converted(plain):
    return landmark.convert(copy.deepcopy(plain), block_size=15, retrieve=3)


TASK = Task("anything", lambda reply, draft: 0.0, 6)


def asked(question: torch.Tensor, query: str = "", start: int = 5) -> Prompt:
    """A question after all of `IDS` but the last nine, of which those before `start` are the template's."""
    return Prompt(TASK, Draft(Hidden(()), "", (), query=query), 0.0, IDS[:-9], question, range(start, len(IDS) - 9))


def greedy(logits_of, ids: torch.Tensor, count: int) -> list[int]:
    """Decoding that begins anew for each token."""
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat((ids, logits_of(ids[None]).logits[0, -1:].argmax(-1)))
    return ids[-count:].tolist()


def answered(model, attention, **options) -> list[int]:
    attending = Attending.of(model.config, attention, **options)
    seen: list[int] = []
    answer = attending.of_length(copy.deepcopy(model), chat_tokenizer(), len(IDS))(IDS[:-9], seen.append)
    assert sum(seen) == len(IDS) - 9
    answer(asked(IDS[100:140], "something else"))  # another question changes nothing
    return answer(asked(IDS[-9:], "this"))


def test_full_attention_in_chunks_is_that_of_one_forward(plain):
    assert len(IDS) > CHUNK
    assert answered(plain, "full") == greedy(lambda ids: plain(input_ids=ids, use_cache=False), IDS, 6)


def test_full_attention_of_a_converted_model_is_that_of_training(converted):
    expected = greedy(lambda ids: converted(input_ids=ids, use_cache=False), IDS, 6)
    assert answered(converted, "full") == expected
    assert answered(converted, "landmark") != expected


def test_without_retrieval_only_the_local_window_is_read(converted):
    assert answered(converted, "none") == answered(converted, "landmark", retrieve=0)
    changed = IDS.clone()
    changed[:100] = 5
    attending = Attending.of(converted.config, "none", chunk_size=30)
    read = attending.of_length(converted, chat_tokenizer(), 700)
    one, other = (read(ids[:-9], lambda n: None)(asked(ids[-9:])) for ids in (IDS, changed))
    assert one == other


def test_sinks_are_those_of_the_original_model(plain):
    window = 64
    model = landmark.convert(copy.deepcopy(plain))

    def read(ids: torch.Tensor):
        return model(input_ids=ids, landmark_reader=Sinks(100, window - SINKS, SINKS))

    assert answered(plain, "sinks", window=window) == greedy(read, IDS, 6)
    assert answered(plain, "sinks", window=1024) == answered(plain, "full"), "nothing leaves the window"


def test_yarn_is_that_of_transformers(plain):
    config = copy.deepcopy(plain.config)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    config.rope_parameters = config.rope_parameters | yarn
    config.max_position_embeddings = 8192
    expected = AutoModelForCausalLM.from_config(config)
    expected.load_state_dict(plain.state_dict())
    with torch.no_grad():
        found = stretched(plain, 8192)(input_ids=IDS[None]).logits
        assert torch.equal(found, expected.eval()(input_ids=IDS[None]).logits)
        assert not torch.allclose(found, plain(input_ids=IDS[None]).logits, atol=1e-2)
    assert answered(plain, "yarn") == answered(plain, "full"), "within the trained range it changes nothing"
    with pytest.raises(ValueError, match="plain rotary positions"):
        stretched(expected, 9000)


@pytest.mark.parametrize(
    ("attention", "options", "said"),
    [
        ("landmark", {}, "has none"),
        ("local", {}, "has none"),
        ("full", {"retrieve": 2}, "leave out retrieve"),
        ("full", {"window": 8}, r"window \(8\) is for"),
        ("sinks", {"window": 4}, "window is 4"),
        ("sinks", {"window": 4096}, "window is 4096"),
        ("windows", {}, "choose one of"),
    ],
)
def test_what_an_ordinary_model_cannot_do(plain, attention, options, said):
    with pytest.raises(ValueError, match=said):
        Attending.of(plain.config, attention, **options)


def test_what_a_converted_model_cannot_do(converted):
    with pytest.raises(ValueError, match="leave out retrieve"):
        Attending.of(converted.config, "none", retrieve=2)
    with pytest.raises(ValueError, match="before conversion"):
        Attending.of(converted.config, "yarn")
    with pytest.raises(ValueError, match="leaves the trained range"):
        Attending.of(converted.config, "full").check_length(converted.config, 2048)
    Attending.of(converted.config, "full").check_length(converted.config, 1000)


def test_blocks_are_read_again_in_text_order_in_front_of_the_question(converted, monkeypatch):
    last = (len(IDS) - 9) // 15
    ranked = [Span(block, 15 * block, min(15 * block + 15, len(IDS) - 9), 1.0) for block in (last, 7, 0, 8, 3)]
    queries = []
    monkeypatch.setattr(Rereading, "spans", lambda self, query: queries.append(query) or ranked)
    gap = chat_tokenizer()("\n\n")["input_ids"]
    again = [gap, IDS[5:15].tolist(), gap, IDS[105:135].tolist(), gap, IDS[15 * last : -9].tolist()]
    question = torch.tensor([*itertools.chain(*again), *IDS[-9:].tolist()])
    answer = Attending.of(converted.config).of_length(converted, chat_tokenizer(), len(IDS))(IDS[:-9], lambda n: None)
    assert answered(converted, "landmark", reread=4, heads=HEADS) == answer(asked(question))
    assert queries == ["something else", "this"]
    assert answered(converted, "landmark") != answer(asked(question))


def test_the_template_and_white_space_are_no_blocks_to_read_again(converted, monkeypatch):
    spans = [Span(block, 15 * block, 15 * block + 15, 0.0) for block in (0, 1, 9, 3, 12, 5)]
    monkeypatch.setattr(Rereading, "spans", lambda self, query: spans)
    tokenizer, ids = chat_tokenizer(), IDS.clone()
    ids[45:60] = tokenizer("\n")["input_ids"][0]  # block 3
    gap = tokenizer("\n\n")["input_ids"]
    again = [gap, ids[20:30].tolist(), gap, ids[135:150].tolist(), gap, ids[180:195].tolist()]
    question = torch.tensor([*itertools.chain(*again), *ids[-9:].tolist()])
    read = Attending.of(converted.config).of_length(converted, tokenizer, len(ids))
    expected = read(ids[:-9], lambda n: None)(asked(question))
    read = Attending.of(converted.config, reread=3, heads=HEADS).of_length(converted, tokenizer, len(ids))
    answer = read(ids[:-9], lambda n: None)
    assert answer(asked(ids[-9:], start=20)) == expected


def test_what_is_read_again_is_among_the_settings_of_a_log(converted):
    plain, again = Attending.of(converted.config), Attending.of(converted.config, reread=2, heads=HEADS)
    assert again.settings() == plain.settings() | {"reread": 2, "heads": {"heads": [[1, 2]], "pooling": "mean"}}
    assert json.loads(json.dumps(again.settings())) == again.settings(), "else a log could not be gone on with"


@pytest.mark.parametrize(
    ("attention", "options", "said"),
    [
        ("none", {"reread": 2, "heads": HEADS}, "for attention landmark"),
        ("landmark", {"reread": -1, "heads": HEADS}, "reread is -1: give the number"),
        ("landmark", {"reread": 2}, "no heads are known"),
        ("landmark", {"heads": HEADS}, "reread is 0: give reread 1 or more"),
        ("landmark", {"reread": 2, "heads": RetrievalHeads(((7, 2),))}, "layer 7 has no head 2"),
        ("landmark", {"reread": 3, "heads": HEADS, "chunk_size": 30}, "give at most 2"),
        ("landmark", {"reread": 3, "heads": HEADS, "retrieve": 0}, "give retrieve 1 or more"),
    ],
)
def test_blocks_that_cannot_be_read_again(converted, attention, options, said):
    with pytest.raises(ValueError, match=said):
        Attending.of(converted.config, attention, **options)


def test_beyond_the_trained_range_full_attention_warns(plain):
    with pytest.warns(UserWarning, match="2049 tokens with full attention: the model was trained on 2048"):
        Attending.of(plain.config, "full").check_length(plain.config, 2049)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Attending.of(plain.config, "full").check_length(plain.config, 2048)
        Attending.of(plain.config, "yarn").check_length(plain.config, 4096)


def test_defaults(plain, converted):
    assert Attending.of(plain.config).attention == "full"
    assert Attending.of(converted.config).attention == "landmark"
    assert Attending.of(plain.config, "sinks").window == 1024


# BM25.


def test_the_best_passages_stand_in_text_order():
    tokenizer = chat_tokenizer()
    lines = [f"line {n:04d} says nothing of note today\n" for n in range(60)]
    lines[50], lines[7] = "the key of Xavier is 12345 ........\n", "Xavier lost a key in winter ........\n"
    text = "".join(lines)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    draft, task = Draft(Hidden(()), "?", (), query="What is the key of Xavier?"), Task("t", lambda *_: 0.0, 1)
    prompt = Prompt(task, draft, 0.5, ids, ids[:3], range(20, len(ids)))
    found = Passages(tokenizer, 260, 36).of(prompt)
    chosen = tokenizer.decode(found.text[found.context.start : found.context.stop])
    assert len(found.context) <= 260
    assert chosen.index("lost a key") < chosen.index("12345")
    assert "\n\n" in chosen
    assert all(part in text for part in chosen.split("\n\n"))
    assert torch.equal(found.text[:20], ids[:20])
    # All of a text that fits, and of one without any word of the query.
    assert torch.equal(Passages(tokenizer, 10_000, 36).of(prompt).text, ids)


# Asking.


def test_full_attention_of_a_converted_model_need_only_reach_over_what_was_found(converted):
    tokenizer = chat_tokenizer()
    prompts = Prompts(tokenizer, "It was a calm day and nothing was seen. " * 20, samples=1)
    length = 2 * SHAPE["max_position_embeddings"]
    asker = Asker(converted, Attending.of(converted.config, "full"), prompts, Passages(tokenizer, 300, 15))
    (sample,) = asker.ask(Cell(recall(["passkey"]), False, length), 0, ["passkey"], lambda tokens: None)
    assert 200 < sample.read < 500


@pytest.mark.parametrize("rag", [False, True])
def test_samples_add_up(plain, rag):
    tokenizer = chat_tokenizer()
    prompts = Prompts(tokenizer, "It was a calm day and nothing was seen. " * 20, samples=3)
    asker = Asker(plain, Attending.of(plain.config), prompts, Passages(tokenizer, 500, 63) if rag else None)
    cells = [Cell(recall(["passkey", "absent"]), chat, 1900) for chat in (False, True)]
    seen: list[int] = []
    samples = [s for cell, i in order(cells, 3, 0) for s in asker.ask(cell, i, ["passkey", "absent"], seen.append)]
    assert sum(seen) == 6 * 1900
    assert len(samples) == len({sample.place for sample in samples}) == 12
    assert all(sample.read < (1000 if rag else 1200) for sample in samples), "a text is read once for two questions"
    (again,) = asker.ask(cells[0], 1, ["absent"], seen.append)
    (before,) = (sample for sample in samples if sample.place == again.place)
    assert (again.answer, again.references, again.depth) == (before.answer, before.references, before.depth)
    rows = summaries(cells, samples[:7], {"attention": "full"})
    assert [(row["task"], row["form"], row["samples"]) for row in rows] == [
        ("passkey", "plain", 3),
        ("absent", "plain", 3),
        ("passkey", "chat", 1),
    ]
    assert all(row["low"] <= row["right"] <= row["high"] for row in rows)


def test_an_early_end_has_asked_all_cells_at_all_depths():
    cells = [Cell(recall([name]), True, 100) for name in NAMES[:3]]
    asked = order(cells, 30, 0)
    assert len(set(asked)) == len(asked) == 90
    half = [index for cell, index in asked[:45] if cell == cells[0]]
    assert len(half) == 20
    assert min(half) < 8
    assert max(half) > 21


def test_logs_name_the_model_by_its_contents(plain, converted):
    told = contents(plain, chat_tokenizer(), "a")
    other = copy.deepcopy(plain)
    assert contents(other, chat_tokenizer(), "a") == told
    with torch.no_grad():
        other.model.norm.weight[3] += 1
    assert contents(other, chat_tokenizer(), "a")["model"] != told["model"]
    assert contents(converted, chat_tokenizer(), "a")["model"] != told["model"]
    assert contents(plain, chat_tokenizer(), "b")["haystack"] != told["haystack"]
