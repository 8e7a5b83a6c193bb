from pathlib import Path

from landmark.data.recall import RecallTask
from landmark.training.stages import Stage
from reproduce.trainings.shipped_model import shipped_model


def test_the_curriculum_ends_among_distractors(data):
    plan = shipped_model(Path("out"), data)
    stages = plan.recipe.stages
    assert [(stage.steps, stage.window_positions, stage.gates) for stage in stages] == [
        (700, 192, False),
        (500, 192, True),
        (500, 384, True),
        (500, 512, True),
        (600, 416, True),
    ]
    far = RecallTask(keys=(1, 5), questions=(2, 5), answer_weight=5.0)
    assert stages[-1] == Stage(
        600, 416, 16, attention="landmark_distractors", distractors=16384, recall_fraction=0.5, recall=far
    )
    recipe = plan.recipe
    assert (recipe.learning_rate, recipe.final_learning_rate, recipe.weight_decay, recipe.clip) == (0.0015, 0, 0.1, 1)


def test_it_trains_on_books_alone_with_a_tokenizer_of_its_own(data):
    plan = shipped_model(Path("out"), data, seed=4)
    assert plan.texts == tuple(str(data / "books" / "train" / name) for name in ("a.txt", "b.txt"))
    assert (plan.tokenizer, plan.vocabulary, plan.seed) == ("out/tokenizer", 4095, 4)
    assert (plan.block_size, plan.retrieve, plan.save_dtype) == (31, 2, "float16")
