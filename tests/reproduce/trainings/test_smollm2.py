from pathlib import Path

from reproduce.trainings.catalogue import find, plan_of
from reproduce.trainings.options import NamedTraining
from reproduce.trainings.smollm2 import CONVERSION, REFINEMENT, STAGES, smollm2_135m


def folder(tmp_path: Path) -> Path:
    for part in ("train", "validation", "test"):
        (tmp_path / "books" / part).mkdir(parents=True)
        (tmp_path / "books" / part / "a.txt").write_text("text")
    return tmp_path


def test_the_plan_distils_with_adapters(tmp_path):
    plan = smollm2_135m(tmp_path / "out", folder(tmp_path))
    assert plan.distill
    assert plan.adapter is not None
    assert all(len(schedule.shares) == len(schedule.stages) for schedule in (CONVERSION, REFINEMENT))
    assert all(stage.window_positions <= 8192 for stage in STAGES)


def test_a_gguf_file_can_stand_in_for_the_hub(tmp_path):
    data = folder(tmp_path)
    options = NamedTraining(out=tmp_path / "out", name="smollm2_135m", data=data, model="a.gguf")
    assert plan_of(find("smollm2_135m"), options).model == "a.gguf"


def test_most_of_a_step_is_text_and_answers_are_asked_for_in_every_stage():
    assert all(0.4 <= stage.recall_fraction <= 0.6 and stage.recall.chat for stage in STAGES)
    assert all(stage.attention == "landmark" or stage.distract_answers for stage in STAGES)
