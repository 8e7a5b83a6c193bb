from dataclasses import replace
from pathlib import Path

from landmark.training.recipe import Recipe
from landmark.training.stages import Stage
from reproduce.trainings.corpus import Corpus
from reproduce.trainings.small import MODEL, small, small_books, small_math


def test_a_small_training_stays_what_was_measured(data):
    corpus = Corpus.of(data / "books")
    plan = small(corpus, Path("out"), Path("shared/tokenizer"), "recurrent", seed=3)
    assert plan.recipe == Recipe(
        (Stage(1600, 1024, 4, attention="recurrent", segments=4, retrieve=1),),
        learning_rate=0.002,
        final_learning_rate=0.0004,
        warmup_steps=32,
        weight_decay=0.001,
    )
    assert plan.config == MODEL | {"max_position_embeddings": 523}
    settings = (plan.block_size, plan.retrieve, plan.precision, plan.seed, plan.tokens, plan.tokenizer, plan.vocabulary)
    assert settings == (50, 2, "float32", 3, Path("shared/tokens"), "shared/tokenizer", None)
    landmarks = small(corpus, Path("out"), Path("shared/tokenizer"), block_size=63, steps=100, jumps=5)
    assert landmarks.recipe.stages == (Stage(100, 521, 8, retrieve=1, jumps=5),)


def test_recipes_by_name_share_a_tokenizer_of_their_own(data):
    books, math = (make(Path("runs/one"), data, "full", steps=9, seed=2) for make in (small_books, small_math))
    assert books.tokenizer == "runs/books_1024/tokenizer"
    assert (math.tokenizer, math.tokens) == ("runs/math_1024/tokenizer", Path("runs/math_1024/tokens"))
    plain = small(Corpus.of(data / "books"), Path("runs/one"), Path(books.tokenizer), "full", steps=9, seed=2)
    assert books == replace(plain, vocabulary=1024)
