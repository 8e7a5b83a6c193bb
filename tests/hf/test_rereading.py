"""Blocks to read again: all of a text, ranked as a retriever ranks them, and joined in text order."""

import pytest

import landmark
from landmark.hf.block_search import BlockSearch
from landmark.hf.rereading import Rereading, check_reread, in_text_order, most_reread, usual_reread
from landmark.hf.retrieval_heads import BACKGROUND, BlockRanker, RetrievalHeads, searchable_heads
from landmark.hf.tokenizer import encode
from landmark.hf.trace import Span

HEADS = RetrievalHeads(((1, 0), (1, 3)))
TEXT = "it was a calm sea and jim looked at the ships for a long while . he spoke of keys 0123 . " * 5
QUERY = "he spoke of keys"


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted(set(TEXT.split()) | {"<unk>", "\n"})
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.fixture(scope="module")
def model(sharp_llama):
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return landmark.convert(sharp_llama(**shape), block_size=7, retrieve=2)


def test_blocks_rank_as_their_scores_and_the_cache_stays_as_it_is(model, tokenizer):
    ids = encode(tokenizer, TEXT).ids
    assert len(ids) % 7, "the last block is not full"
    cache = landmark.read(model, ids)
    spans = Rereading(model, tokenizer, cache, HEADS).spans(QUERY)
    scores = BlockRanker(BlockSearch(model, tokenizer, cache.fork()), tokenizer, HEADS).scores(QUERY)
    assert [span.block for span in spans] == scores.argsort(descending=True, stable=True).tolist()
    assert [span.weight for span in spans] == sorted(scores.tolist(), reverse=True)
    assert len(set(scores.tolist())) > 3, "a ranking that can fail"
    covered = sorted((span.start, span.stop) for span in spans)
    assert covered == [(start, min(start + 7, len(ids))) for start in range(0, len(ids), 7)]
    assert cache.tokens_read() == [len(ids)]


def test_the_end_of_a_long_question_decides(model, tokenizer):
    cache = landmark.read(model, encode(tokenizer, TEXT).ids, landmark.LandmarkCache(model.config, chunk_size=14))
    rereading = Rereading(model, tokenizer, cache, HEADS)
    words = QUERY.split() * 8
    assert rereading.spans(" ".join(["sea"] * 40 + words)) == rereading.spans(" ".join(["ships"] * 40 + words))
    assert rereading.spans(QUERY) != rereading.spans("a calm sea")


def test_neighbours_are_joined_in_text_order():
    spans = [Span(block, 5 * block, 5 * block + 5, block / 10) for block in (9, 2, 8, 0, 1)]
    assert in_text_order(spans) == [Span(0, 0, 15, 0.0), Span(8, 40, 50, 0.8)]
    assert in_text_order([]) == []


@pytest.mark.parametrize("count", [True, "3", 1.0, -1])
def test_what_is_no_number_of_blocks(model, count):
    with pytest.raises(ValueError, match=r"reread is .*: give the number of blocks"):
        check_reread(count, landmark.LandmarkCache(model.config))


def test_as_many_blocks_as_a_chunk_has_room_for(model):
    cache = landmark.LandmarkCache(model.config, chunk_size=22)
    assert most_reread(cache) == 3
    check_reread(3, cache)
    with pytest.raises(ValueError, match="reread is 4: give at most 3"):
        check_reread(4, cache)
    none = landmark.LandmarkCache(model.config, retrieve=0)
    check_reread(0, none)
    with pytest.raises(ValueError, match="give retrieve 1 or more"):
        check_reread(1, none)


def test_of_dropped_blocks_none_is_read_again(model, tokenizer):
    cache = landmark.read(model, encode(tokenizer, TEXT).ids, landmark.LandmarkCache(model.config, max_blocks=3))
    with pytest.raises(ValueError, match="reread is 1 and max_blocks is 3, so that blocks are dropped"):
        check_reread(1, cache)
    with pytest.raises(ValueError, match="max_blocks is 3: blocks that were dropped cannot be searched"):
        Rereading(model, tokenizer, cache, HEADS)


def test_how_many_where_nobody_says(model):
    def usual(heads=HEADS, **reading):
        return usual_reread(model.config, landmark.LandmarkCache(model.config, **reading), heads)

    assert (usual(), usual(chunk_size=22), usual(None)) == (5, 3, 0)
    assert usual(retrieve=0) == usual(max_blocks=3) == usual(positions="true") == 0


def test_chunks_shorter_than_the_sentences_of_the_background(model, tokenizer):
    cache = landmark.read(model, encode(tokenizer, TEXT).ids, landmark.LandmarkCache(model.config, chunk_size=7))
    sentences = [len(encode(tokenizer, text, continues=True).ids) for text in BACKGROUND]
    assert max(sentences) > 7
    assert len(Rereading(model, tokenizer, cache, HEADS).spans(QUERY)) > 3


@pytest.mark.parametrize("window", [24, 300])
def test_native_sliding_layers(tokenizer, sharp_llama, window):
    """They forget what a query pushes out of the window: each query has to leave the next as it was."""
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    model = landmark.convert(sharp_llama("gemma2", sliding_window=window, **shape), block_size=7, retrieve=2)
    heads = RetrievalHeads(tuple(searchable_heads(model.config)[:2]))
    cache = landmark.read(model, encode(tokenizer, TEXT * 4).ids)
    rereading = Rereading(model, tokenizer, cache, heads)
    spans = rereading.spans(QUERY)
    assert rereading.spans("a calm sea") != spans
    assert rereading.spans(QUERY) == spans == Rereading(model, tokenizer, cache, heads).spans(QUERY)
    assert len({span.weight for span in spans}) > 3
