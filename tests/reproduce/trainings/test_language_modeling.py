import pytest

from reproduce.trainings.language_modeling import SPAN, reach, recipe, stage, windows


@pytest.mark.parametrize("attention", windows(SPAN))
def test_every_attention_trains_on_as_many_tokens(attention):
    made = stage(attention, 10, 4 * 2048, block_size=50)
    assert made.attention == attention
    tokens = windows(SPAN)[attention][0]
    assert made.batch_size * tokens == 4 * 2048
    # A window holds so many ordinary tokens at least, wherever in a block it begins.
    assert made.window_positions == (reach(tokens, 50) if made.has_landmarks else tokens)


def test_transformer_xl_is_the_papers():
    made = stage("recurrent", 10, 16 * 512)
    assert (made.window_positions, made.segments, made.batch_size) == (2048, 8, 4)


def test_the_schedule_is_the_papers_at_any_length():
    whole = recipe(stage("full", 240_000, 8192), micro_batches=8)
    assert (whole.learning_rate, whole.final_learning_rate, whole.warmup_steps) == (2e-3, 4e-4, 4800)
    assert [recipe(stage("full", steps, 8192)).warmup_steps for steps in (1, 2, 60, 100)] == [0, 1, 1, 2]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="attention is 'recurent': choose one of landmark, full, recurrent"):
        stage("recurent", 10, 8192)
    with pytest.raises(ValueError, match="block_size must be at least 1, not 0"):
        stage("landmark", 10, 8192, block_size=0)
