from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from landmark.data.corpora import CORPORA
from landmark.training.stages import tokens_per_step
from reproduce.trainings.paper import paper_arxiv, paper_pg19


def test_the_model_has_the_papers_size():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**paper_pg19(Path("out")).config))
    embeddings = model.get_input_embeddings().weight
    assert embeddings is model.get_output_embeddings().weight
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (weights - embeddings.numel()) // 10**6 == 151


@pytest.mark.parametrize("attention", ["landmark", "full", "recurrent", "knn"])
def test_a_step_reads_128_windows_of_512_tokens(attention):
    plan = paper_pg19(Path("out"), attention)
    (stage,) = plan.recipe.stages
    tokens = tokens_per_step(stage, 50, plan.recipe.micro_batches)
    # Windows with landmarks are cut to positions, so that some hold a token or two more.
    assert 128 * 512 <= tokens <= 128 * 513
    assert stage.steps == 240_000


def test_corpora_are_those_of_the_hub():
    for make, name in ((paper_pg19, "pg19"), (paper_arxiv, "arxiv_math")):
        plan = make(Path("runs/one"), "recurrent", steps=10, seed=1, block_size=63)
        assert (plan.texts, plan.validation) == ((f"corpus:{name}:train",), (f"corpus:{name}:validation",))
        assert {"train", "validation"} <= CORPORA[name].files.keys()
        assert plan.tokens == Path(f"runs/{name}_tokens")
        assert (plan.seed, plan.block_size, plan.recipe.steps) == (1, 63, 10)
