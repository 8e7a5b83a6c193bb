"""Texts that are read side by side: each as it is read alone, whatever lies beside it, ends or fails."""

from typing import Any

import pytest
import torch
from families import family

import landmark
from landmark.hf.compat import cache_kwargs
from landmark.hf.decoding import Decoding, Sampling, compute_together
from landmark.hf.joined import read_together, why_apart
from landmark.memory import LayerMemory
from landmark.store.tiered import TieredStore

SIZE = 5  # of a block
LENGTHS = [1, 4, 13, 30, 57, 64, 20, 9]  # two texts have no blocks in memory, and tails end at several places


def converted(name: str = "llama") -> Any:
    return landmark.convert(family(name).eval(), block_size=SIZE, retrieve=2, local_blocks=1)


@torch.no_grad()
def read(model, lengths=LENGTHS, **options) -> list[landmark.LandmarkCache]:
    """Caches that have each read a text of its own."""
    caches = []
    for seed, length in enumerate(lengths):
        cache = landmark.LandmarkCache(model.config, **options)
        model(input_ids=random_tokens(length, seed), **cache_kwargs(model, cache))
        caches.append(cache)
    return caches


def random_tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 60, (1, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def alone(model, cache, token) -> torch.Tensor:
    return model(input_ids=token, **cache_kwargs(model, cache)).logits[:, -1]


@pytest.mark.parametrize(
    ("name", "same_bits"),
    [("llama", True), ("qwen2", True), ("qwen3", False), ("gemma2", False), ("mixtral", False), ("granite", False)],
)
def test_a_text_is_read_as_alone(name, same_bits):
    """Twelve steps, in each of which some text completes a block; gemma2 has sliding layers of its own."""
    model = converted(name)
    together = read(model)
    apart = [cache.fork() for cache in together]
    for step in range(12):
        tokens = [random_tokens(1, 100 * step + row) for row in range(len(together))]
        found = read_together(model, together, tokens)
        expected = [alone(model, cache, token) for cache, token in zip(apart, tokens, strict=True)]
        for one, other in zip(found, expected, strict=True):
            if same_bits:
                assert torch.equal(one, other)
            else:
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, other in zip(together, apart, strict=True):
        assert one.tokens_read() == other.tokens_read()
        assert one.trace().weights().keys() == other.trace().weights().keys()


def test_what_no_loop_computes_is_close():
    """More texts than compiled loops serve at a time: other sums, of the same numbers."""
    model = converted()
    together = read(model, [7 + row for row in range(40)])
    apart = [cache.fork() for cache in together]
    tokens = [random_tokens(1, row) for row in range(40)]
    for one, cache, token in zip(read_together(model, together, tokens), apart, tokens, strict=True):
        torch.testing.assert_close(one, alone(model, cache, token), atol=1e-5, rtol=1e-5)


SETTINGS: list[dict[str, Any]] = [
    {}, {"retrieve": 1}, {"retrieve": 0}, {"local_blocks": 2}, {"gap": 9}, {"max_blocks": 3}, {"positions": "true"},
    {"selection": "per_group"}, {"selection": "per_token"}, {"miss_threshold": 0.3},
    {"host_budget": 10_000}, {"host_budget": "1MB"},
]  # fmt: skip


def test_texts_are_read_by_different_settings():
    """Some by loops for all texts, some each by itself; the blocks of two in files, of one read piece by piece."""
    model = converted()
    together = [cache for row, options in enumerate(SETTINGS) for cache in read(model, [30 + row], **options)]
    apart = [cache.fork() for cache in together]
    for step in range(12):
        tokens = [random_tokens(1, 100 * step + row) for row in range(len(together))]
        found = read_together(model, together, tokens)
        for one, cache, token in zip(found, apart, tokens, strict=True):
            assert torch.equal(one, alone(model, cache, token))
    for one, other in zip(together, apart, strict=True):
        assert one.trace().weights() == other.trace().weights()
        assert one.retrievals == other.retrievals


@pytest.mark.parametrize(
    ("name", "where", "options"),
    [("llama", (LayerMemory, "few"), {}), ("qwen3", (LayerMemory, "attend"), {}),
     ("llama", (TieredStore, "fetch_assigned"), {"host_budget": "1MB"})],
)  # fmt: skip
def test_a_text_that_fails_fails_by_itself(monkeypatch, name, where, options):
    model = converted(name)
    caches = read(model, **options)
    apart = [cache.fork() for cache in caches]
    caches[1].begin()  # interrupted before
    broken: Any = caches[2].memory(1)  # in the middle of the forward
    working = getattr(*where)

    def failing(part, *args, **options):
        if part in (broken, broken._blocks._store):
            raise OSError("a file cannot be read")
        return working(part, *args, **options)

    monkeypatch.setattr(*where, failing)
    tokens = [random_tokens(1, row) for row in range(len(caches))]
    found = read_together(model, caches, tokens)
    assert "interrupted" in str(found[1])
    assert isinstance(found[2], OSError)
    for row in {*range(len(caches))} - {1, 2}:
        torch.testing.assert_close(found[row], alone(model, apart[row], tokens[row]))
    with pytest.raises(ValueError, match="interrupted"):
        caches[2].fork()


def test_a_text_that_insists_on_graphs_is_not_read_with_others():
    model = converted()
    caches = read(model, [8, 9, 10])
    caches[1].decode = "graph"
    found = read_together(model, caches, [random_tokens(1, row) for row in range(3)])
    assert [isinstance(one, ValueError) for one in found] == [False, True, False]
    assert 'decode="graph" is for texts that are read alone' in str(found[1])


@pytest.mark.parametrize("allow", [False, True])
def test_numbers_that_are_not_finite_are_an_error(allow):
    model = converted()
    caches = read(model, [8, 9], allow_nonfinite=allow)
    with torch.no_grad():
        model.base_model.layers[-1].mlp.down_proj.weight[:] = torch.nan
    found = read_together(model, caches, [random_tokens(1, row) for row in range(2)])
    assert all(isinstance(one, ValueError) != allow for one in found)


def test_a_text_whose_keys_are_not_finite_fails_by_itself():
    model = converted()
    caches = read(model, [8, 30, 30, 31]) + read(model, [32], allow_nonfinite=True)
    apart = [cache.fork() for cache in caches]
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    tokens = [torch.tensor([[token]]) for token in (8, 7, 9, 8, 7)]
    found = read_together(model, caches, tokens)
    assert "not finite (NaN or infinity) in the keys or values of layer 0" in str(found[1])
    assert isinstance(found[4], torch.Tensor)
    assert found[4].isnan().all()
    for row in (0, 2, 3):
        assert torch.equal(found[row], alone(model, apart[row], tokens[row]))
    with pytest.raises(ValueError, match="in the keys or values of layer 0"):
        alone(model, apart[1], tokens[1])


def test_a_model_that_mixes_tokens_reads_texts_apart():
    model = converted()
    assert why_apart(model) is None
    layer = model.base_model.layers[0]
    hook = layer.register_forward_hook(lambda module, args, out: out + 0.1 * out.roll(1, 1))
    assert "depends on the texts beside it" in why_apart(model)
    hook.remove()

    def refuse(module, args, out):
        if out.shape[1] == 3:  # two tokens and a landmark
            raise RuntimeError("no texts side by side")

    layer.register_forward_hook(refuse)
    assert "no texts side by side" in why_apart(model)


@pytest.mark.parametrize("name", ["gemma3", "phi3", "olmo2", "gpt_oss"])
def test_other_families_read_texts_together(name):
    assert why_apart(converted(name)) is None


def decodings(model, caches) -> list[Decoding]:
    samplings = [Sampling(0.0 if row % 2 else 1.0, 0.9, seed=row) for row in range(len(caches))]
    prompts = [random_tokens(1 + 3 * row, 50 + row)[0] for row in range(len(caches))]
    return [
        Decoding(model, cache, prompt, max_new_tokens=12 + row, sampling=sampling, ends=[])
        for row, (cache, prompt, sampling) in enumerate(zip(caches, prompts, samplings, strict=True))
    ]


def test_answers_are_those_of_one_alone():
    """Greedy and sampled, of different lengths, two of them cancelled, one begun later."""
    model = converted()
    caches = read(model)
    expected, logs = [], []
    for one in decodings(model, [cache.fork() for cache in caches]):
        logs.append([])
        while not one.done:
            one.step()
            logs[-1].append(one.logprobs(3))
        expected.append(one.ids)
    running = decodings(model, caches)
    late = running.pop()
    found: dict[Decoding, list] = {one: [] for one in (*running, late)}
    for turn in range(40):
        if turn == 3:
            running.append(late)
        if turn == 5:
            del running[1], running[4]
        compute_together(model, [one for one in running if one.decodes])
        for one in running:
            one.step()
            found[one].append(one.logprobs(3))
        running = [one for one in running if not one.done]
    for row, (one, seen) in enumerate(found.items()):
        assert one.ids == expected[row][: len(one.ids)]
        assert seen == logs[row][: len(seen)]
        assert one.done != (row in (1, 5))


def test_answers_to_one_prompt_read_it_once(monkeypatch):
    """Each is the answer of its seed, with the trace of the prompt, and all are decoded together."""
    model = converted()
    cache, prompt = read(model, [40])[0], random_tokens(9, 7)[0]

    def decoding(seed: int) -> Decoding:
        branch = cache.fork()
        branch.start_trace()
        return Decoding(model, branch, prompt, max_new_tokens=8, sampling=Sampling(1.0, 0.9, seed), ends=[])

    expected = []
    for one in map(decoding, range(3)):
        while not one.done:
            one.step()
        expected.append((one.ids, one.cache.trace().weights()))
    first = decoding(0)
    while not first.decodes:
        first.step()
    found = [first, first.branch(1), first.branch(2)]
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("the prompt is read again"))
    for one in found[1:]:
        one.step()
    monkeypatch.undo()
    while not first.done:
        compute_together(model, found)
        for one in found:
            one.step()
    assert [(one.ids, one.cache.trace().weights()) for one in found] == expected
