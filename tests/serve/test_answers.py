"""Answers through the server, asked by OpenAI's client: those of `Context.generate` and `Chat`, however many run."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx
import openai
import pytest
import torch
from serving import NAME, running, until

from landmark import Chat, Context
from landmark.contexts.documents import in_front
from landmark.hf.rereading import in_text_order
from landmark.serve import prompts
from landmark.serve.server import Limits

PROMPT, QUESTION = "jim looked at the ", "where are the keys ?"
ASKED = f"{NAME}@library"


@pytest.fixture(scope="module")
def context(reader, library):
    return Context.open(library, *reader)


def expected(context, prompt=PROMPT, seed=0, temperature=0.0, tokens=24):
    torch.manual_seed(seed)
    return context.generate(prompt, max_new_tokens=tokens, temperature=temperature)


def complete(served, prompt=PROMPT, tokens=24, **options):
    return served.client().completions.create(model=ASKED, prompt=prompt, max_tokens=tokens, **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_is_that_of_the_context(served, context, temperature):
    answer = expected(context, seed=7, temperature=temperature)
    found = complete(served, temperature=temperature, seed=7)
    (choice,) = found.choices
    assert (choice.text, choice.finish_reason) == (answer.text, "length")
    assert choice.landmark["sources"] == [asdict(source) for source in answer.sources]
    assert len(answer.sources) > 2
    assert found.usage.prompt_tokens_details.cached_tokens == context.tokens == choice.landmark["tokens_read"]
    assert found.usage.completion_tokens == 24
    assert found.usage.total_tokens == found.usage.prompt_tokens + 24 > context.tokens + 24


def test_a_long_prompt_is_read_in_the_same_chunks(served, context):
    prompt = "the sea was calm and jim looked at it . " * 30
    assert complete(served, prompt).choices[0].text == expected(context, prompt).text


def test_a_chat_is_that_of_the_library(served, context):
    chat = Chat.about(context)
    first = chat.ask(QUESTION, max_new_tokens=12)
    client = served.client()
    asked = [{"role": "user", "content": QUESTION}]
    found = client.chat.completions.create(model=NAME, messages=asked, max_tokens=12, extra_body={"context": "library"})
    assert found.choices[0].message.content == first.text
    assert found.choices[0].landmark["sources"] == [asdict(source) for source in first.sources]


def test_blocks_are_read_again_in_a_chat_as_in_one_of_the_library(reader, library, context, known_heads):
    texts = []
    with running(*reader, given={"library": library}) as served:
        for count in (0, 2, 3, None):
            found = chatted(served, ASKED, QUESTION, **({} if count is None else {"reread": count}))
            chat = Chat.about(context)
            answer = chat.ask(QUESTION, max_new_tokens=12, reread=chat.usual_reread if count is None else count)
            assert found.message.content == answer.text
            assert found.landmark["sources"] == [asdict(source) for source in answer.sources]
            assert len({source.block for source in answer.sources if source.reread}) == (5 if count is None else count)
            texts.append(answer.text)
        for asked, said in (((ASKED, QUESTION, 100), "give at most"), ((NAME, QUESTION, 2), "no text of a context")):
            with pytest.raises(openai.BadRequestError, match=said) as caught:
                chatted(served, asked[0], asked[1], reread=asked[2])
            assert caught.value.param == "reread"
        with pytest.raises(openai.BadRequestError, match="a message is empty"):
            chatted(served, ASKED, " ")
    assert len(set(texts)) > 2


def user(question):
    return {"role": "user", "content": question}


SYSTEM = {"role": "system", "content": "be short ."}
CONVERSATIONS = [[], [SYSTEM], [user("hello"), {"role": "assistant", "content": "hi"}]]
CONVERSATIONS.append([SYSTEM, *CONVERSATIONS[-1]])


def test_passages_stand_right_in_front_of_the_question(reader, library, context, known_heads):
    """Whatever was said before; and of what a sentence opened it is known what was read again."""
    best = context.best_blocks(QUESTION, 20)
    again, opened = in_front(context.passages(in_text_order(best), 20)), []
    with running(*reader, given={"library": library}) as served:
        for before in CONVERSATIONS:
            options = {"reread": 20, "sentences": True, "sources": 50}
            found = said(served, [*before, user(QUESTION)], **options)
            assert found.message.content == said(served, [*before, user(again + QUESTION)], reread=0).message.content
            blocks = {source["block"] for source in found.landmark["sources"] if source["reread"]}
            assert blocks == {span.block for span in best}
            opened += [one for sentence in found.landmark["sentences"] for one in sentence["sources"]]
            assert all(one["reread"] == (one["block"] in blocks) for one in opened)
    assert {one["reread"] for one in opened} == {True, False}


def test_the_words_of_a_client_are_limited_and_passages_come_on_top(reader, library, context, known_heads, monkeypatch):
    ranked, best_blocks = [], Context.best_blocks

    def noted(self, *asked):
        ranked.append(asked)
        return best_blocks(self, *asked)

    monkeypatch.setattr(Context, "best_blocks", noted)
    monkeypatch.setattr(prompts, "PIECE_CHARACTERS", 1)  # as of long texts, whose pieces are counted
    with running(*reader, given={"library": library}, limits=Limits(prompt_tokens=60)) as served:
        plain, again = (said(served, [user(QUESTION)], **more) for more in ({"reread": 0}, {}))
        assert plain.message.content != again.message.content
        with pytest.raises(openai.BadRequestError, match="more than 60 tokens"):
            said(served, [user(QUESTION * 10)])
    assert len(ranked) == 1, "a prompt that is refused is not looked up first"


def test_no_block_is_read_again_where_nobody_knows_which(served):
    assert not any(source["reread"] for source in chatted(served, ASKED, QUESTION).landmark["sources"])
    with pytest.raises(openai.BadRequestError, match="no heads are known"):
        chatted(served, ASKED, QUESTION, reread=2)


def chatted(served, model, question, **options):
    return said(served, [user(question)], model, **options)


def said(served, messages, model=ASKED, **options):
    found = served.client().chat.completions.create(
        model=model, messages=messages, max_tokens=12, extra_body=options or None
    )
    return found.choices[0]


def test_eight_at_once_answer_as_one_alone(served, context):
    asked = [
        (f"{word} ", seed, 1.0 if seed % 2 else 0.0)
        for seed, word in enumerate(["the", "sea", "was", "calm", "and", "jim", "he", "of"])
    ]
    answers = [expected(context, *one).text for one in asked]
    assert len(set(answers)) > 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: complete(served, one[0], seed=one[1], temperature=one[2]), asked))
    assert [one.choices[0].text for one in found] == answers


def test_answers_have_the_bits_that_they_have_alone(served):
    """With and without a context, greedy and sampled, of several lengths, beside clients that go away."""

    def ask(number):
        model, prompt = (ASKED, NAME)[number % 2], "jim looked at the calm sea . "[: 5 + 4 * number]
        options = {"model": model, "prompt": prompt, "max_tokens": 10 + 5 * number, "logprobs": 2, "seed": number}
        (choice,) = served.client().completions.create(**options, temperature=float(number > 2)).choices
        return choice.text, choice.logprobs.token_logprobs, choice.landmark

    def leave(number):
        options = {"model": (ASKED, NAME)[number % 2], "prompt": PROMPT, "max_tokens": 4000, "stream": True}
        with served.client().completions.create(**options) as stream:
            for _ in range(4 + 6 * number):
                next(stream)

    alone = [ask(number) for number in range(6)]
    with ThreadPoolExecutor(8) as pool:
        leaving = [pool.submit(leave, number) for number in range(2)]
        assert list(pool.map(ask, range(6))) == alone
        for one in leaving:
            one.result()
    assert "landmark_decodes_together 1.0" in httpx.get(f"{served.url}/metrics").text


def test_a_stream_is_the_answer_in_pieces(served, context):
    answer = expected(context)
    chunks = list(complete(served, stream=True, stream_options={"include_usage": True}))
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in pieces) == answer.text
    assert [choice.finish_reason for choice in pieces if choice.finish_reason] == ["length"]
    assert pieces[-1].landmark["sources"] == [asdict(source) for source in answer.sources]
    assert len(pieces) > 10
    assert chunks[-1].usage.completion_tokens == 24


def test_a_streamed_chat_is_the_same_as_a_whole_one(served):
    asked = {"model": ASKED, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    whole = served.client().chat.completions.create(**asked).choices[0].message.content
    chunks = [chunk.choices[0] for chunk in served.client().chat.completions.create(**asked, stream=True)]
    assert chunks[0].delta.role == "assistant"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole


def test_a_conversation_needs_no_context(served, reader):
    chat = Chat(*reader)
    first = chat.ask("hello ?", max_new_tokens=5)
    asked = [{"role": "user", "content": "hello ?"}]
    found = served.client().chat.completions.create(model=NAME, messages=asked, max_tokens=5)
    assert found.choices[0].message.content == first.text
    assert found.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string(served, context, stream):
    text = expected(context).text
    stop = text[9:12]
    found = complete(served, stop=["never comes", stop], stream=stream)
    choices = [choice for chunk in found for choice in chunk.choices] if stream else found.choices
    assert "".join(choice.text for choice in choices) == text[: text.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_choices_are_those_of_successive_seeds(served, context):
    found = complete(served, n=3, seed=11, temperature=1.0)
    answers = [expected(context, seed=seed, temperature=1.0).text for seed in (11, 12, 13)]
    assert [choice.text for choice in found.choices] == answers
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert found.usage.completion_tokens == 72


def test_logprobs_are_those_of_the_model(served, context):
    found = complete(served, tokens=4, logprobs=3)
    logs = found.choices[0].logprobs
    assert logs.tokens[0] == next(iter(logs.top_logprobs[0]))
    branch = context.fork().cache
    from landmark.hf.tokenizer import encode

    ids = encode(context.tokenizer, PROMPT, continues=True).ids
    with torch.no_grad():
        logits = context.model(input_ids=ids[None], past_key_values=branch, use_cache=True).logits[0, -1]
    assert logs.token_logprobs[0] == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-6)
    assert [len(top) for top in logs.top_logprobs] == [3] * 4
    asked = {"model": ASKED, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
    chat = served.client().chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0]
    assert [len(token.top_logprobs) for token in chat.logprobs.content] == [2] * 3
    assert all(token.logprob == token.top_logprobs[0].logprob for token in chat.logprobs.content)


def test_top_p_of_almost_nothing_is_greedy(served, context):
    found = complete(served, temperature=1.0, top_p=1e-6, seed=3)
    assert found.choices[0].text == expected(context).text


def test_sentences_have_their_own_sources(served):
    found = complete(served, tokens=40, extra_body={"sentences": True}).choices[0]
    sentences = found.landmark["sentences"]
    letters = [number for number, letter in enumerate(found.text) if not letter.isspace()]
    covered = [number for one in sentences for number in range(one["first"], one["last"])]
    assert set(letters) <= set(covered)
    assert all(one["sources"] for one in sentences)
    assert sum(source["weight"] for source in sentences[0]["sources"]) <= 1


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"suffix": "end"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"context": "other"}}, "context"),
    ],
)
def test_what_cannot_be_honoured_is_refused(served, options, param):
    with pytest.raises(openai.BadRequestError) as refused:
        served.client().completions.create(model=ASKED, prompt=PROMPT, **options)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([{"role": "assistant", "content": "yes"}], {}),
        ([{"role": "user", "content": " "}], {}),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}], {}),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], {}),
        ([{"role": "user", "content": "a"}], {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ([{"role": "user", "content": "a"}], {"response_format": {"type": "json_object"}}),
        ([{"role": "user", "content": "a"}], {"top_logprobs": 2}),
    ],
)
def test_conversations_that_cannot_be_honoured_are_refused(served, messages, options):
    with pytest.raises(openai.BadRequestError):
        served.client().chat.completions.create(model=ASKED, messages=messages, **options)


@pytest.mark.parametrize("model", ["gpt-4", f"{NAME}@", f"{NAME}@nothing"])
def test_unknown_models_and_contexts_are_not_found(served, model):
    with pytest.raises(openai.NotFoundError):
        served.client().completions.create(model=model, prompt=PROMPT)


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("POST", "completions", "application/json"),
        ("POST", "contexts", "application/json"),
        ("PUT", "contexts/library/documents/files", "application/json"),
        ("POST", "contexts/library/files", "multipart/form-data"),
    ],
)
@pytest.mark.parametrize("given", [None, "text/plain; charset=utf-8"])
def test_a_body_of_another_kind_is_refused(served, method, path, wanted, given):
    headers = {} if given is None else {"Content-Type": given}
    response = httpx.request(method, f"{served.url}/v1/{path}", content=b"{}", headers=headers)
    assert response.status_code == 415
    error = response.json()["error"]
    assert error["message"].endswith(f": send {wanted}")
    assert (given or "without").partition(";")[0] in error["message"]
    assert error["type"] == "invalid_request_error"


def test_one_answer_at_a_time_needs_no_forward_of_several(reader, monkeypatch):
    monkeypatch.setattr("landmark.serve.server.why_apart", None)  # it is not called
    with running(*reader, limits=Limits(running=1)) as one:
        assert one.server.engine.together is None


def test_a_prompt_is_encoded_beside_the_engine(served, monkeypatch):
    prompts, threads = served.server.prompts, []
    usual = prompts.continuation

    def noted(*arguments, **options):
        threads.append(threading.current_thread().name)
        return usual(*arguments, **options)

    monkeypatch.setattr(prompts, "continuation", noted)
    complete(served, tokens=1)
    assert [name.startswith("beside") for name in threads] == [True]


@pytest.mark.parametrize("words", [40_000, 200_000])
def test_a_prompt_that_is_too_long_is_refused_before_all_of_it_is_encoded(served, words, monkeypatch):
    prompts, pieces = served.server.prompts, []
    usual = prompts._texts.pieces
    monkeypatch.setattr(prompts._texts, "pieces", lambda text: (pieces.append(1) or one for one in usual(text)))
    with pytest.raises(openai.BadRequestError, match="put long texts into a context"):
        complete(served, "keys " * words)
    assert len(pieces) < 3


def test_models_are_listed_with_their_contexts(served):
    assert all(model.chat for model in served.client().models.list())
    assert {NAME, ASKED} <= {model.id for model in served.client().models.list()}
    assert served.client().models.retrieve(ASKED).id == ASKED


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_branch(served, stream, caplog):
    engine = served.server.engine
    body = {"model": ASKED, "prompt": PROMPT, "max_tokens": 4000, "stream": stream}
    client = httpx.Client(timeout=httpx.Timeout(60, read=1.0))
    try:
        with client.stream("POST", f"{served.url}/v1/completions", json=body) as found:
            next(found.iter_lines())  # of the stream; the whole answer takes longer than the client waits
    except httpx.ReadTimeout:
        assert not stream
    assert until(lambda: not engine.running)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_more_than_the_queue_holds_are_told_to_come_again(reader, library):
    with running(*reader, given={"library": library}, limits=Limits(running=1, waiting=1)) as one:
        engine, client = one.server.engine, one.client()
        long = {"model": ASKED, "prompt": PROMPT, "max_tokens": 4000, "stream": True}
        with client.completions.create(**long) as first:
            assert until(lambda: engine.running)
            with ThreadPoolExecutor(1) as pool:
                second = pool.submit(client.completions.create, model=ASKED, prompt=PROMPT, max_tokens=2)
                assert until(lambda: engine.waiting)
                with pytest.raises(openai.RateLimitError) as refused:
                    client.completions.create(model=ASKED, prompt=PROMPT)
                assert int(refused.value.response.headers["retry-after"]) >= 1
                first.close()
                assert second.result(30).usage.completion_tokens == 2
        figures = httpx.get(f"{one.url}/metrics").text
        assert 'landmark_requests_total{route="/v1/completions",status="429"} 1.0' in figures
        assert "landmark_waiting_requests 0.0" in figures


def test_an_answer_that_takes_too_long_is_ended(reader, library):
    with running(*reader, given={"library": library}, limits=Limits(seconds=1)) as one:
        with pytest.raises(openai.InternalServerError) as late:
            one.client().completions.create(model=ASKED, prompt=PROMPT, max_tokens=4000)
        assert late.value.status_code == 504
        assert until(lambda: not one.server.engine.running)


def test_logs_have_no_text(served, caplog):
    with caplog.at_level("INFO", "landmark.serve"):
        complete(served, "a secret that nobody else shall read ")
        assert until(lambda: '"route"' in caplog.text)  # it is written behind the answer
    lines = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    assert lines[-1]["route"] == "/v1/completions"
    assert "secret" not in caplog.text
