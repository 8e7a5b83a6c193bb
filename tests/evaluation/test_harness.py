"""`LandmarkLM` in the lm-evaluation-harness, against forwards of the model itself."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tiny_reader import BLOCK_SIZE, TRAINED, WORDS

import landmark
from landmark.evaluation.harness import LandmarkLM, main
from landmark.hf.reader import answer

LONG = WORDS * 6  # many chunks
CHUNK = 7  # ordinary tokens, no multiple of the block
QUESTIONS = [("the sea was", ["calm", "keys", "jim"]), (LONG + "he spoke of", ["keys and ships", "a", "calm"])]


@pytest.fixture(scope="module")
def lm(model_folder: Path) -> LandmarkLM:
    return LandmarkLM(str(model_folder), batch_size=3, chunk_size=CHUNK)


def request(*arguments):
    return SimpleNamespace(args=arguments)


def logits_of(lm: LandmarkLM, ids: list[int]) -> torch.Tensor:
    """Logits behind each of the tokens, read alone."""
    cache = landmark.LandmarkCache(lm.model.config, chunk_size=CHUNK)
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), past_key_values=cache).logits[0]


def likelihood_of(lm: LandmarkLM, context: list[int], ids: list[int]) -> tuple[float, bool]:
    logits = logits_of(lm, context + ids)[len(context) - 1 : -1]
    targets = torch.tensor(ids)
    chosen = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(chosen.double().sum()), bool((logits.argmax(-1) == targets).all())


def test_likelihoods_of_a_batch_are_those_of_the_model_alone(lm):
    asked = [(context, f" {choice}") for context, choices in QUESTIONS for choice in choices]
    found = lm.loglikelihood([request(*one) for one in asked], disable_tqdm=True)
    for (context, continuation), (likelihood, greedy) in zip(asked, found, strict=True):
        ids, whole = lm.tok_encode(context), lm.tok_encode(context + continuation)
        expected = likelihood_of(lm, ids, whole[len(ids) :])
        assert (likelihood, greedy) == (pytest.approx(expected[0], abs=1e-3), expected[1])


def test_the_most_likely_continuation_is_found_to_be_that(lm):
    ids = lm.tok_encode(LONG)
    best = [int(logits_of(lm, ids)[-1].argmax())]
    best.append(int(logits_of(lm, ids + best)[-1].argmax()))
    other = [best[0], (best[1] + 1) % 200]
    found = lm._loglikelihood_tokens([(("", ""), ids, tokens) for tokens in (best, other)], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_a_text_without_context_begins_behind_the_prefix_token(lm):
    (found,) = lm.loglikelihood([request("", "calm sea")], disable_tqdm=True)
    assert found[0] == pytest.approx(likelihood_of(lm, [lm.prefix_token_id], lm.tok_encode("calm sea"))[0], abs=1e-3)


def test_rolling_likelihoods_count_every_token_once(lm):
    texts = [LONG, "the sea", WORDS * 2]
    found = lm.loglikelihood_rolling([request(text) for text in texts], disable_tqdm=True)
    for text, likelihood in zip(texts, found, strict=True):
        expected = likelihood_of(lm, [lm.prefix_token_id], lm.tok_encode(text))[0]
        assert likelihood == pytest.approx(expected, abs=1e-2)


def test_answers_of_a_batch_are_those_of_the_model_alone(lm):
    prompts = [LONG, "the sea was", WORDS, "a"]
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0, "top_p": 0.9}
    found = lm.generate_until([request(prompt, settings) for prompt in prompts], disable_tqdm=True)
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor(lm.tok_encode(prompt))
        cache = landmark.read(lm.model, ids[:-1], landmark.LandmarkCache(lm.model.config, chunk_size=CHUNK))
        new = answer(lm.model, ids[-1:], cache, max_new_tokens=6, end=lm.eot_token_id)
        assert text == lm.tokenizer.decode(new, skip_special_tokens=True)


def test_an_answer_ends_before_a_stop_sequence(lm):
    (whole,) = lm.generate_until([request(LONG, {"until": [], "max_gen_toks": 8})], disable_tqdm=True)
    stop = whole[3:5]
    (cut,) = lm.generate_until([request(LONG, {"until": [stop], "max_gen_toks": 8})], disable_tqdm=True)
    assert cut == whole[: whole.index(stop)]


def test_sampling_follows_the_seed(lm):
    asked = [request(LONG, {"do_sample": True, "temperature": 50.0, "max_gen_toks": 8})]
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers += lm.generate_until(asked, disable_tqdm=True)
    assert answers[0] == answers[1] != answers[2]


def write_tasks(folder: Path) -> None:
    """A multiple choice, a perplexity and a generating task about lines of local JSON files."""
    lines = [
        {"question": question, "choices": choices, "answer": index, "page": LONG[index * 40 :]}
        for index, (question, choices) in enumerate(QUESTIONS)
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "lines.jsonl")}},
        "test_split": "test",
    }
    of_task = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        },
        "roll": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
        "write": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["zzz"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in of_task.items():  # JSON is YAML
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | shared | task), encoding="utf-8")


def test_the_harness_runs_a_task_of_each_kind(lm, tmp_path):
    write_tasks(tmp_path)
    found = simple_evaluate(
        lm, tasks=["choose", "roll", "write"], task_manager=TaskManager(include_path=str(tmp_path)), bootstrap_iters=0
    )
    choices = found["samples"]["choose"]
    assert len(choices) == 2
    for sample in choices:
        for arguments, (likelihood, _) in zip(sample["arguments"], sample["filtered_resps"], strict=True):
            ids = lm.tok_encode(arguments[0])
            expected = likelihood_of(lm, ids, lm.tok_encode("".join(arguments))[len(ids) :])[0]
            assert likelihood == pytest.approx(expected, abs=1e-3)
    pages = [LONG, LONG[40:]]
    total = sum(likelihood_of(lm, [lm.prefix_token_id], lm.tok_encode(page))[0] for page in pages)
    perplexity = found["results"]["roll"]["byte_perplexity,none"]
    assert perplexity == pytest.approx(math.exp(-total / sum(map(len, pages))), rel=1e-4)
    assert all(isinstance(sample["filtered_resps"][0], str) for sample in found["samples"]["write"])


def test_a_task_of_the_harness_for_long_texts(lm, model_folder, monkeypatch):
    """RULER's needle in repeated noise: made by the harness without a network, read whole and not from its end."""
    nltk = pytest.importorskip("nltk", reason="the harness's RULER tasks need nltk and wonderwords")
    pytest.importorskip("wonderwords", reason="the harness's RULER tasks need nltk and wonderwords")
    monkeypatch.setattr(nltk.data, "find", lambda *_: None)  # or it downloads what this task does not need
    texts = importlib.import_module("lm_eval.tasks.ruler.prepare_niah")
    made = texts.generate_samples
    monkeypatch.setattr(texts, "generate_samples", lambda *given, **more: made(*given, **more | {"num_samples": 1}))
    read = []

    class Counting(LandmarkLM):
        def _generate(self, prompts, **generation):
            read.extend(map(len, prompts))
            return super()._generate(prompts, **generation)

    found = simple_evaluate(
        Counting(str(model_folder)),
        tasks=["niah_single_1"],
        limit=1,
        bootstrap_iters=0,
        task_manager=TaskManager(metadata={"tokenizer": str(model_folder)}),
    )
    assert 0 <= found["results"]["niah_single_1"]["4096,none"] <= 1
    (sample,) = found["samples"]["niah_single_1"]
    assert read == [len(lm.tok_encode(sample["arguments"][0][0]))]
    assert read[0] > 8 * TRAINED


def test_the_command_of_the_harness_knows_the_model(model_folder, tmp_path):
    write_tasks(tmp_path)
    command = [sys.executable, "-m", "landmark.evaluation.harness", "--model", "landmark", "--tasks", "choose"]
    command += ["--model_args", f"pretrained={model_folder},retrieve=1", "--include_path", str(tmp_path)]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert "|choose|" in done.stdout
    (written,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(written.read_text(encoding="utf-8"))["config"]
    assert (config["model"], config["retrieve"], config["block_size"]) == ("landmark", 1, BLOCK_SIZE)


def test_a_mistake_on_the_command_line_is_one_line(model_folder, tmp_path, monkeypatch, capsys):
    write_tasks(tmp_path)
    arguments = ["--model", "landmark", "--tasks", "choose", "--include_path", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["lm_eval", *arguments, "--model_args", f"pretrained={model_folder},top_k=4"])
    assert main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("landmark: error: model_args has top_k: the model")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"top_k": 4}, "model_args has top_k"),
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
        ({"retrieve": -1}, "retrieve is -1"),
        ({"chunk_size": 10**6}, "chunk"),
    ],
)
def test_unusable_arguments(model_folder, arguments, said):
    with pytest.raises(ValueError, match=said):
        LandmarkLM(str(model_folder), **arguments)


def test_results_say_that_likelihoods_look_ahead(lm, monkeypatch):
    assert "looks_ahead" not in lm.get_model_info()
    monkeypatch.setitem(lm.cache_options, "selection", "per_head")
    assert lm.get_model_info()["looks_ahead"]


def test_what_cannot_be_answered_is_refused(lm):
    with pytest.raises(ValueError, match="no token of its own"):
        lm.loglikelihood([request("the sea", "")], disable_tqdm=True)
    with pytest.raises(ValueError, match="generates with num_beams"):
        lm.generate_until([request("the sea", {"num_beams": 2})], disable_tqdm=True)
