"""Training on windows that know their documents: the option, the recipe, and what reaches the model."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from landmark.data.tokens import TokenFile
from landmark.hf import from_pretrained
from landmark.training.options import TrainOptions
from landmark.training.plan import plan_of
from landmark.training.recipe import read_recipe, recipe_of
from landmark.training.run import EVAL_SEED, train
from landmark.training.stages import Stage, StageBatches
from landmark.training.trainer import attention_arguments


def test_the_option_packs_the_one_stage_and_a_recipe_each_of_its_own(tmp_path):
    base = {"texts": ("a.txt",), "out": Path("out")}
    assert recipe_of(TrainOptions(**base, packing=True)).stages[0].packing
    assert not recipe_of(TrainOptions(**base)).stages[0].packing
    stage = "[[stage]]\nsteps = 4\nwindow_positions = 48\nbatch_size = 3\n"
    (tmp_path / "r.toml").write_text(f"warmup_steps = 0\n{stage}{stage}packing = true\n")
    assert [one.packing for one in read_recipe(tmp_path / "r.toml").stages] == [False, True]
    with pytest.raises(ValueError, match="decides about --packing"):
        recipe_of(TrainOptions(**base, recipe=tmp_path / "r.toml", packing=True))


def test_documents_reach_the_attention(material):
    documents = torch.tensor([[0, 0, 1]])
    stage = Stage(1, 48, 1, packing=True)
    rest = {"tokens": 3, "training": False, "plain": torch.tensor([True]), "distractors": {}}
    rest["answers"] = torch.zeros(1, 3, dtype=torch.bool)
    arguments = attention_arguments(None, stage, 2, None, documents, **rest)
    assert arguments["landmark_documents"] is documents


def test_trainings_without_packing_or_distractors_are_known_by_what_they_were_before_these(options):
    stage = plan_of(options()).identity()["recipe"]["stages"][0]
    assert not {"packing", "distractors"} & stage.keys()
    packed = options(recipe=None, steps=1, packing=True)
    assert plan_of(packed).identity()["recipe"]["stages"][0]["packing"]


@pytest.fixture
def short_documents(material, tmp_path) -> tuple[str, ...]:
    """The material's text in files of a few lines, some of them shorter than a block."""
    lines = (material / "text.txt").read_text().split("\n")
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(0, len(lines), 3):
        (folder / f"{number:03}.txt").write_text("\n".join(lines[number : number + 1 + number % 3]))
    return tuple(str(path) for path in sorted(folder.iterdir()))


def test_a_training_on_packed_documents_is_another_and_evaluates_the_same_way(options, short_documents, tmp_path):
    settings = {"texts": short_documents, "recipe": None, "steps": 3, "window_positions": 96, "batch_size": 2}
    settings |= {"learning_rate": 0.01, "validation": short_documents, "eval_every": 3, "eval_windows": 4}
    found = {}
    for packing in (False, True):
        out, log = tmp_path / str(packing), tmp_path / f"{packing}.jsonl"
        train(options(**settings, packing=packing, out=out, json=str(log)))
        found[packing] = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(event["loss"])) for event in found[True] if event["event"] == "train")
    ends = [[event["eval_text_loss"] for event in events if event["event"] == "eval"] for events in found.values()]
    assert len(ends[0]) == len(ends[1]) == 1
    assert ends[0] != ends[1]
    one, other = (from_pretrained(tmp_path / str(packing) / "model").state_dict() for packing in (False, True))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_measured_loss_is_that_of_each_document_alone(options, short_documents, tmp_path):
    """What an evaluation of packed windows logs, computed again from the finished model, document by document."""
    log = tmp_path / "log.jsonl"
    settings = {"texts": short_documents, "recipe": None, "steps": 2, "window_positions": 96, "batch_size": 2}
    settings |= {"validation": short_documents, "eval_every": 2, "eval_windows": 4, "packing": True}
    model = from_pretrained(train(options(**settings, json=str(log)))).eval()
    (measured,) = (json.loads(line)["eval_text_loss"] for line in log.read_text().splitlines() if "eval_loss" in line)

    texts = TokenFile.open(tmp_path / "run" / "validation_tokens")
    stops = [document.stop for document in texts.documents]
    stage = Stage(2, 96, 2, packing=True)
    batches = StageBatches(texts.ids, None, [stage], block_size=7, seed=EVAL_SEED, document_stops=stops)
    losses = []
    for batch in (batches[0], batches[1]):
        for ids, documents in zip(batch["input_ids"], batch["documents"], strict=True):
            start = 0
            for length in documents.unique_consecutive(return_counts=True)[1].tolist():
                document = ids[None, start : start + length]
                with torch.no_grad():
                    logits = model(input_ids=document, landmark_phase=(batch["phase"] + start) % 7).logits
                losses.append(cross_entropy(logits[0, :-1], document[0, 1:], reduction="none"))
                start += length
    assert len(losses) > 8, "windows of several documents"
    assert measured == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)
