"""What conversions take: shapes against real models, the reckoning by hand, the table in the guide, recipes dry-run."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import landmark
from landmark.cli.parsing import parse
from landmark.training.options import TrainOptions
from landmark.training.plan import plan_of
from landmark.training.recipe import read_recipe
from landmark.training.run import train
from landmark.training.stages import Stage
from reproduce.__main__ import REPRODUCE
from reproduce.studies import conversion_cost
from reproduce.studies.conversion_cost import RECIPES, SHAPES, SMOLLM2, Shape
from reproduce.studies.convert_smollm2 import small_stage
from reproduce.studies.options import ConversionCostOptions

sys.path.insert(0, str(Path(__file__).parents[2] / "evaluation"))
from chat_tokenizer import chat_tokenizer

GUIDE = Path(__file__).parents[3] / "docs" / "finetuning.md"

# Heads, ratios of widths, rotary embeddings and ties of the families, a few layers deep.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
COMMON = {"vocab_size": 258, "num_hidden_layers": 2, "bos_token_id": 256, "eos_token_id": 257}
MINIATURES = {
    "qwen3-0.6b": ("qwen3", 32, 4, 2, 16, 96, 40_960, {"rope_type": "default", "rope_theta": 1e6}, True),
    "llama-3.2-1b": ("llama", 64, 8, 2, 8, 256, 131_072, LLAMA3 | {"factor": 32.0}, True),
    "llama-3.1-8b": ("llama", 64, 8, 2, 8, 224, 131_072, LLAMA3 | {"factor": 8.0}, False),
}


def test_shapes_have_the_parameters_of_their_models():
    counted = {name: shape.parameters / 1e6 for name, (_, shape) in SHAPES.items()}
    assert counted == pytest.approx({"qwen3-0.6b": 596, "llama-3.2-1b": 1236, "llama-3.1-8b": 8030}, rel=1e-3)
    assert SMOLLM2.parameters == pytest.approx(134.5e6, rel=1e-3)
    assert SMOLLM2.adapters == pytest.approx(4.88e6, rel=1e-3)  # the adapter in the package, without the landmark's row


def test_the_reckoning_by_hand():
    shape = Shape(layers=1, width=2, intermediate=3, heads=1, kv_heads=1, head_dim=2, vocabulary=5)
    assert (shape.linear, shape.head, shape.parameters) == (4 * 4 + 3 * 6, 10, 44)
    assert shape.adapters == 16 * (4 * 4 + 3 * 5)
    weights, pairs = 44, 4 / 2 * 2
    student = 4 * weights + 6 * shape.adapters + 14 * pairs
    assert shape.operations(4) == pytest.approx(64 / 63 * student + 2 * weights + 4 * pairs)
    one, two = (shape.bytes(Stage(1, 4, batch)) for batch in (1, 2))
    assert one - (two - one) == 4 * 44 + 16 * shape.adapters  # what does not grow with the batch


def test_memory_of_the_measured_run_is_reckoned_within_a_fifth():
    reckoned = SMOLLM2.bytes(conversion_cost.LARGEST) / 2**30
    assert reckoned == pytest.approx(conversion_cost.MEASURED_GIB, rel=0.2)


def test_the_guide_has_the_table_that_the_command_prints(capsys):
    assert REPRODUCE.main(["study", "conversion-cost"]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    guide = GUIDE.read_text(encoding="utf-8")
    assert "\n".join(printed[:-2]) in guide
    assert printed[-1] in " ".join(guide.split())
    faster = conversion_cost.rows(ConversionCostOptions(efficiency=0.8))
    assert faster[-1]["one GPU"] != conversion_cost.rows(ConversionCostOptions())[-1]["one GPU"]


def command_of(name: str) -> list[str]:
    """The arguments of `landmark train` in the comment of a recipe."""
    lines = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    command = " ".join(line.removeprefix("#").strip(" \\") for line in lines if line.startswith("#   "))
    return shlex.split(command)[2:]


def test_every_recipe_is_in_the_table_and_in_the_guide():
    names = {path.stem for path in RECIPES.glob("*.toml")}
    assert names == set(SHAPES) == set(MINIATURES)
    assert names == set(re.findall(r"recipes/([\w.-]+)\.toml\)", GUIDE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", MINIATURES)
def test_the_recipe_trains_a_miniature_of_its_model(name, tmp_path, monkeypatch):
    """Two steps of every stage, in windows of a tenth, by the command in the recipe."""
    kind, width, heads, groups, size, inner, positions, rope, tied = MINIATURES[name]
    shape = SHAPES[name][1]
    assert (
        shape.heads / shape.kv_heads,
        shape.heads * shape.head_dim / shape.width,
        shape.intermediate / shape.width,
    ) == (
        heads / groups,
        heads * size / width,
        inner / width,
    )
    assert shape.tied is tied
    torch.manual_seed(0)
    settings = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size}
    settings |= {"intermediate_size": inner, "max_position_embeddings": positions, "rope_parameters": rope}
    config = AutoConfig.for_model(kind, tie_word_embeddings=tied, **settings, **COMMON)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    chat_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("It was a bright cold day in April, and the clocks were striking. " * 400)

    monkeypatch.chdir(RECIPES.parents[1])
    options = parse(TrainOptions, "landmark train", command_of(name))
    asked = replace(
        options,
        model=str(tmp_path / "model"),
        texts=(str(tmp_path / "text.txt"),),
        out=tmp_path / "run",
        precision=None,
    )
    recipe = read_recipe(options.recipe)
    assert max(stage.window_positions for stage in recipe.stages) <= positions
    stages = tuple(replace(small_stage(stage), steps=2, batch_size=min(2, stage.batch_size)) for stage in recipe.stages)
    plan = replace(plan_of(asked), recipe=replace(recipe, stages=stages, micro_batches=2, warmup_steps=1))
    assert plan.distill
    final = train(plan)
    again = landmark.load_adapter(tmp_path / "model", final.with_name("adapter"))
    trained, ids = landmark.from_pretrained(final), torch.arange(3, 143)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, trained(input_ids=ids).logits, atol=1e-4, rtol=1e-3)
