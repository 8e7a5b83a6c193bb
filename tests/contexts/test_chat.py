"""A conversation about documents: one text of the template for the model, read piece by piece."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import landmark
from landmark import Chat, Context, LandmarkCache
from landmark.hf.rereading import Rereading

BOOK = "it was a calm sea and jim looked at the ships for a long while . " * 6
NOTE = "keys and ships 0123456789 . he spoke of it . " * 4
# Every block is opened, so that it does not matter in which pieces a text is read.
ALL = {"retrieve": 30, "chunk_size": 5}


@pytest.fixture(scope="module")
def tokenizer(model):
    from tiny_reader import CHAT_TEMPLATE

    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def fed(model):
    """All ordinary tokens that the model reads, in order."""
    found: list[int] = []
    landmark_id = model.config.landmark["landmark_id"]

    def note(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        found.extend(token for token in arguments[0].flatten().tolist() if token != landmark_id)

    hook = model.get_input_embeddings().register_forward_pre_hook(note)
    yield found
    hook.remove()


def templated(tokenizer, message: str) -> list[int]:
    """Tokens of a message of the user, up to the beginning of the reply."""
    messages = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def next_logits(model, cache: LandmarkCache) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[40]]), past_key_values=cache.fork(), use_cache=True).logits[0, -1]


def test_several_turns_are_one_conversation_of_the_template(model, tokenizer, fed):
    chat = Chat(model, tokenizer, LandmarkCache(model.config, **ALL))
    chat.read("jim looked at it .", "book")
    first = chat.ask("where is jim ?", max_new_tokens=6, sources=0)
    chat.read("he spoke of keys .", "note")
    second = chat.ask("and the keys ?", max_new_tokens=6, sources=0)
    chat.ask("why ?", max_new_tokens=1, sources=0)
    assert len(first.ids) == len(second.ids) == 6
    # Answers are kept as they were generated: the tokens of their text may be others.
    between = tokenizer("<eos>\n").input_ids
    expected = [*templated(tokenizer, "jim looked at it .\n\nwhere is jim ?"), *first.ids, *between]
    expected += [*templated(tokenizer, "he spoke of keys .\n\nand the keys ?"), *second.ids, *between]
    expected += templated(tokenizer, "why ?")
    assert fed == expected
    assert chat.tokens_read == len(expected)

    whole = landmark.read(model, fed, LandmarkCache(model.config, **ALL))
    torch.testing.assert_close(next_logits(model, chat.cache), next_logits(model, whole), atol=1e-4, rtol=1e-4)


def test_names_of_special_tokens_stay_text(model, tokenizer, fed):
    chat = Chat(model, tokenizer)
    chat.read("he spoke <eos> of <pad> keys", "book")
    chat.ask("what is <eos> ?", max_new_tokens=1, sources=0)
    special = [token for token in fed if token in tokenizer.all_special_ids]
    template = [token for token in templated(tokenizer, "") if token in tokenizer.all_special_ids]
    assert special == template
    assert "he spoke <eos> of <pad> keys\n\nwhat is <eos> ?<eos>\n<pad>assistant" in tokenizer.decode(fed)


def test_sources_are_passages_of_documents_and_nothing_that_was_said(model, tokenizer):
    chat = Chat(model, tokenizer)
    texts = {"book": BOOK, "note": NOTE}
    chat.read(BOOK, "book")
    chat.ask("what did he say for so long that nobody asked him ? " * 3, max_new_tokens=9)
    chat.read(NOTE, "note")
    answer = chat.ask("what of it ?", max_new_tokens=9, sources=1000)
    assert {source.document for source in answer.sources} == {"book", "note"}
    for source in answer.sources:
        assert source.text == texts[source.document][source.first : source.last]
        assert source.block * 5 <= source.start < source.stop <= (source.block + 1) * 5
    blocks = [source.block for source in answer.sources]
    opened = {span.block: span for span in answer.trace.spans()}
    assert all(source.weight == opened[source.block].weight for source in answer.sources)
    assert list(dict.fromkeys(blocks)) != sorted(set(blocks))
    assert chat.ask("and ?", max_new_tokens=1, sources=0).sources == []
    assert len(chat.ask("and ?", max_new_tokens=1, sources=2).sources) == 2
    assert [document.name for document in chat.documents] == ["book", "note"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_chat_about_a_context_leaves_it_as_it_is(model, tokenizer, tmp_path, fed):
    with Context.create(tmp_path / "library", model, tokenizer) as context:
        context.append(BOOK, "book")
    before = contents(tmp_path / "library")
    context = Context.open(tmp_path / "library", model, tokenizer)
    expected = context.generate("jim", max_new_tokens=5)
    fed.clear()
    chat = Chat.about(context)
    first = chat.ask("where is jim ?", max_new_tokens=5, sources=1000)
    # The text is there already, without the template's opening.
    assert "\n\nwhere is jim ?<eos>\n<pad>assistant\n" in tokenizer.decode(fed)
    assert "<pad>user" not in tokenizer.decode(fed)
    chat.read(NOTE, "note")
    second = chat.ask("what of the keys ?", max_new_tokens=5, sources=1000)
    assert {source.document for source in first.sources} == {"book"}
    assert {source.document for source in second.sources} == {"book", "note"}
    for source in second.sources:
        assert source.text == {"book": BOOK, "note": NOTE}[source.document][source.first : source.last]
    assert [document.name for document in chat.documents] == ["book", "note"]
    again = context.generate("jim", max_new_tokens=5)
    assert (again.text, again.sources) == (expected.text, expected.sources)
    assert contents(tmp_path / "library") == before


def test_a_stopped_answer_stays_as_far_as_it_came(model, tokenizer, fed):
    chat, pieces = Chat(model, tokenizer), []
    answer = chat.ask("jim", max_new_tokens=50, write=pieces.append, stop=lambda: chat.tokens_read > 30)
    assert 1 < len(answer.ids) < 50
    assert "".join(pieces).strip() == answer.text.strip()
    chat.ask("and ?", max_new_tokens=1)
    assert fed[len(templated(tokenizer, "jim")) :][: len(answer.ids)] == answer.ids


def test_a_document_whose_reading_stops_is_there_as_far_as_it_was_read(model, tokenizer):
    chat = Chat(model, tokenizer, LandmarkCache(model.config, chunk_size=5))
    calls = []

    def progress(tokens: int) -> None:
        calls.append(tokens)
        if len(calls) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.read(BOOK, "book", progress=progress)
    (document,) = chat.documents
    assert document.tokens == sum(calls) < len(tokenizer(BOOK).input_ids)
    chat.read(NOTE, "note")
    answer = chat.ask("what ?", max_new_tokens=5, sources=1000)
    for source in answer.sources:
        assert source.text == {"book": BOOK, "note": NOTE}[source.document][source.first : source.last]


def test_an_interrupted_chat_is_over(model, tokenizer):
    chat = Chat(model, tokenizer)

    def write(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("jim", write=write)
    with pytest.raises(ValueError, match="begin another chat"):
        chat.ask("jim")


def test_what_is_refused(model, tokenizer, tmp_path):
    chat = Chat(model, tokenizer)
    for question in ("", " \n", 7, "\ud800"):
        with pytest.raises(ValueError, match="question"):
            chat.ask(question)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sources is -1"):
        chat.ask("jim", sources=-1)
    with pytest.raises(ValueError, match="temperature is -1"):
        chat.ask("jim", temperature=-1)
    with pytest.raises(ValueError, match="'note' is empty"):
        chat.read("", "note")
    assert chat.tokens_read == 0
    chat.ask("jim", max_new_tokens=1)  # none of this did any harm

    with pytest.raises(ValueError, match="has read something"):
        Chat(model, tokenizer, chat.cache)
    mute = AutoTokenizer.from_pretrained(model.name_or_path)
    with pytest.raises(ValueError, match="no chat template: its model continues texts"):
        Chat(model, mute)
    with Context.create(tmp_path / "library", model, tokenizer) as context:
        context.add([("note", NOTE)])
        with pytest.raises(ValueError, match="not read yet"):
            Chat.about(context)


def test_sources_do_not_depend_on_whether_earlier_ones_were_asked_for(model, tokenizer):
    chats = [Chat(model, tokenizer), Chat(model, tokenizer)]
    for chat, sources in zip(chats, (0, 9), strict=True):
        chat.read(BOOK, "book")
        chat.ask("where is jim ?", max_new_tokens=3, sources=sources)
    found = [chat.ask("and the keys ?", max_new_tokens=3, sources=9).sources for chat in chats]
    assert found[0] == found[1] != []


# Reading again.

HEADS = landmark.RetrievalHeads(((1, 0), (1, 3)))


def test_the_best_blocks_of_documents_stand_in_front_of_the_question(model, tokenizer, fed, monkeypatch):
    ranked = Rereading.spans
    monkeypatch.setattr(Rereading, "spans", lambda self, question: found.extend(ranked(self, question)) or found)
    chat, found = Chat(model, tokenizer, heads=HEADS), []
    chat.read(BOOK, "book")
    chat.ask("where is jim ?", max_new_tokens=2, sources=0)  # the conversation is not read again
    chat.read(NOTE, "note")
    fed.clear()
    answer = chat.ask("and the keys ?", max_new_tokens=2, reread=3, sources=9)
    again = [source for source in answer.sources if source.reread]
    assert answer.sources[: len(again)] == again, "they come first"
    of_documents = [span.block for span in found if span.block in {source.block for source in again}]
    assert list(dict.fromkeys(source.block for source in again)) == of_documents[:3] != sorted(of_documents[:3])
    message = tokenizer.decode(fed)
    for source in again:
        assert source.text in (BOOK if source.document == "book" else NOTE)
        assert source.text.strip() in message
    assert message.count("and the keys ?") == 2, "once to search, once to be answered"


def test_reading_again_does_not_disturb_the_memory(model, tokenizer, tmp_path):
    """The same question with and without: what was read of documents is the same, and so are later answers."""
    with Context.create(tmp_path / "context", model, tokenizer) as context:
        context.append(BOOK, "book")
    context = Context.open(tmp_path / "context", model, tokenizer)
    plain, again = Chat.about(context), Chat.about(context, heads=HEADS)
    answer = again.ask("where is jim ?", max_new_tokens=3, reread=2, sources=9)
    blocks = {source.block for source in answer.sources if source.reread}
    assert len(blocks) == 2
    # A chat whose question has these passages in it is the same conversation.
    texts = again._texts_of([span for span in again._rereading.spans("where is jim ?") if span.block in blocks])
    assert plain.ask(texts + "where is jim ?", max_new_tokens=3, sources=0).ids == answer.ids
    assert torch.equal(next_logits(model, plain.cache), next_logits(model, again.cache))


def test_a_search_that_was_interrupted_is_begun_anew(model, tokenizer, monkeypatch):
    chats = [Chat(model, tokenizer, heads=HEADS) for _ in range(2)]
    for chat in chats:
        chat.read(BOOK, "book")

    def interrupted(self, question):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Rereading, "spans", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chats[0].ask("where is jim ?", reread=2)
    answers = [chat.ask("where is jim ?", max_new_tokens=3, reread=2) for chat in chats]
    assert answers[0].ids == answers[1].ids
    assert answers[0].sources == answers[1].sources != []


def test_blocks_without_words_are_not_read_again(model, tokenizer, tmp_path):
    text = "jim has the keys ." + "\n" * 60 + "the ships are at sea ." + " " * 60
    chat = Chat(model, tokenizer, heads=HEADS)
    chat.read(text, "spaces")
    ranked = Rereading(model, tokenizer, chat.cache, HEADS).spans("where is jim ?")
    assert not all(source.text.strip() for span in ranked[:5] for source in chat._sources(span)), "a case that can fail"
    answer = chat.ask("where is jim ?", max_new_tokens=2, reread=5)
    again = [source for source in answer.sources if source.reread]
    assert len({source.block for source in again}) == 5
    assert all(source.text.strip() for source in again)


def test_all_that_was_read_again_is_a_source_and_so_many_opened_blocks(model, tokenizer):
    chat = Chat(model, tokenizer, heads=HEADS)
    chat.read(BOOK, "book")
    for limit in (0, 1, 3):
        answer = chat.ask("where is jim ?", max_new_tokens=2, reread=4, sources=limit)
        blocks = {source.block: source.reread for source in answer.sources}
        assert list(blocks.values()) == ([True] * 4 + [False] * limit if limit else [])


def test_reading_again_refuses_what_it_cannot_do(model, tokenizer):
    with pytest.raises(ValueError, match="layer 9 has no head"):
        Chat(model, tokenizer, heads=landmark.RetrievalHeads(((9, 0),)))
    chat = Chat(model, tokenizer)
    assert chat.ask("where is jim ?", max_new_tokens=2, reread=2).sources == [], "there is nothing to read again"
    chat.read(BOOK, "book")
    for reread, said in ((-1, "reread is -1"), (10**6, "give at most"), (2, "no heads are known")):
        with pytest.raises(ValueError, match=said):
            chat.ask("where is jim ?", reread=reread)
    chat.ask("where is jim ?", max_new_tokens=2)  # and the conversation goes on
