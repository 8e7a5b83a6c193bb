"""From the stage of a micro-batch to the keyword arguments with which a converted model attends as it says."""

from typing import Any

from torch import Tensor

from landmark.data.windows import Stage
from landmark.hf.config import Settings, text_config
from landmark.readers.distractors import DistractedLandmarks, Distractors
from landmark.readers.memorizing import Memorizing
from landmark.readers.recurrent import Recurrent, RecurrentLandmarks
from landmark.readers.retrieval import RetrievedLandmarks


def attending(
    config: Any,
    stage: Stage,
    phase: int,
    jumps: Tensor | None,
    segments: Tensor | None,
    *,
    tokens: int,
    training: bool,
    plain: Tensor,
    answers: Tensor,
    distractors: dict[int, Distractors],
) -> dict[str, Any]:
    """Keyword arguments of a forward over windows of `tokens` ordinary tokens that begin at `phase` of a block.

    Positions jump and blocks are dropped in training only. `plain [B]` says which windows are text alone,
    `answers [B, T]` which tokens answer a question; `distractors` are those that earlier windows left, by the number
    that is kept of them.
    """
    if stage.attention == "landmark":
        given = {"landmark_phase": phase, "landmark_gates": stage.gates, "landmark_segments": segments}
        if training:
            given |= {"landmark_jumps": jumps, "landmark_block_dropout": stage.block_dropout}
        return given
    segment = tokens // stage.segments
    if stage.attention in ("full", "recurrent"):
        return {"landmark_reader": Recurrent(segment, segment if stage.segments > 1 else 0)}
    if stage.attention == "knn":
        layer = text_config(config).landmark_memory_layer
        return {"landmark_reader": Memorizing(segment, stage.retrieve, layer)}
    block_size = Settings.of(text_config(config)).block_size
    if stage.attention == "landmark_distractors":
        kept = distractors.setdefault(stage.distractors, Distractors(stage.distractors))
        asking = answers.roll(-1, dims=1) if stage.distract_answers else None
        reader = DistractedLandmarks(tokens, stage.retrieve, block_size, kept, plain, phase=phase, asking=asking)
        return {"landmark_reader": reader}
    if stage.attention == "landmark_retrieval":
        return {"landmark_reader": RetrievedLandmarks(segment, stage.retrieve, block_size, phase=phase)}
    assert stage.attention == "landmark_recurrent", "every attention of a stage stands here"
    keep = segment + segment // block_size
    return {"landmark_reader": RecurrentLandmarks(segment, keep, block_size, phase=phase)}
