"""The Hugging Face Trainer with weighted losses, batches in fixed order, and measures of recall."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer

from landmark.data.recall import ANSWER, COPY, HIDDEN, REPLY, TEXT
from landmark.hf.config import landmark_settings, text_config
from landmark.readers.distractors import DistractedLandmarks, Distractors
from landmark.readers.memorizing import Memorizing
from landmark.readers.recurrent import Recurrent, RecurrentLandmarks
from landmark.readers.retrieval import RetrievedLandmarks
from landmark.training.loss import distillation_loss, weighted_cross_entropy
from landmark.training.models import Teacher
from landmark.training.plan import Plan
from landmark.training.stages import Stage

NO_LABEL = -100


def only_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate for datasets whose items are whole micro-batches."""
    (item,) = items
    return item


class Tally:
    """Sums of text loss, answer loss and right answer tokens since the last `take`."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, token_losses: Tensor, labels: Tensor, kinds: Tensor, right: Tensor) -> None:
        """Add a micro-batch: `[B, T]` each, all by the position of the label; `right [n]` for its answers."""
        text = (kinds == TEXT) & (labels != NO_LABEL)
        text[:, 0] = False
        answers = answer_places(kinds)
        losses = [(token_losses * text).sum(), (token_losses * answers).sum()]
        counts = [text.sum(), right.sum(), answers.sum()]
        batch = torch.stack([value.double() for value in losses + counts])
        self.sums = batch if self.sums is None else self.sums + batch

    def take(self, accelerator: Any, prefix: str = "") -> dict[str, float]:
        """The means over all processes, in nats a token; `answer_accuracy` is the share of right answer tokens."""
        sums = torch.zeros(5, dtype=torch.float64) if self.sums is None else self.sums
        self.sums = None
        sums = accelerator.reduce(sums.to(accelerator.device), "sum")
        text_loss, answer_loss, text, right, answers = sums.tolist()
        means = {}
        if text:
            means["text_loss"] = text_loss / text
        if answers:
            means |= {"answer_loss": answer_loss / answers, "answer_accuracy": right / answers}
        return {prefix + name: value for name, value in means.items()}


def answer_places(kinds: Tensor) -> Tensor:
    """Where answers stand that something comes before, `[B, T]`."""
    answers = kinds == ANSWER
    answers[:, 0] = False
    return answers


class LandmarkTrainer(Trainer):
    """Trains on the micro-batches of `StageBatches`, in their order."""

    @classmethod
    def arguments(cls, plan: Plan, processes: int) -> dict[str, Any]:
        """Arguments of `TrainingArguments` that say how as many processes share the work."""
        return {
            "gradient_accumulation_steps": plan.recipe.micro_batches // processes,
            "ddp_find_unused_parameters": False,
            "gradient_checkpointing": plan.gradient_checkpointing or None,  # newer versions warn of the name if False
        }

    def __init__(self, *, teacher: Teacher | None = None, **arguments: Any) -> None:
        super().__init__(data_collator=only_item, **arguments)
        self.teacher = teacher
        # The loss here is a mean over the micro-batch, so the Trainer has to divide by their number.
        self.model_accepts_loss_kwargs = False
        self.model_config: Any = self.model.config  # type: ignore[union-attr]
        self.tallies = {True: Tally(), False: Tally()}  # by model.training
        self.distractors: dict[int, Distractors] = {}  # by the number that is kept of them

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        batches: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(batches)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted loss of the micro-batch; its logits do not survive the call."""
        inputs = dict(inputs)
        labels, weights, kinds = (inputs.pop(name) for name in ("labels", "loss_weights", "token_kinds"))
        rules = [inputs.pop(name) for name in ("stage", "phase", "jumps", "segments")]
        inputs |= attending(
            self.model_config,
            *rules,
            tokens=labels.shape[1],
            training=model.training,
            plain=(kinds == TEXT).all(1),
            answers=answer_places(kinds),
            distractors=self.distractors,
        )
        own = self.own_tokens(labels.shape[1], phase=rules[1])
        taught = None
        if self.teacher is not None:
            with self.accelerator.autocast():
                taught = self.teacher.logits(self.accelerator.unwrap_model(model), inputs["input_ids"])
        outputs = model(**inputs, use_cache=False)
        # Only what these logits predict is measured here.
        others = torch.ones(labels.shape[1], dtype=torch.bool, device=labels.device)
        others[own.start + 1 : own.stop + 1] = False
        kinds = kinds.masked_fill(others, HIDDEN)
        row, place = answer_places(kinds).nonzero(as_tuple=True)
        right = outputs.logits[row, place - 1 - own.start].argmax(-1) == labels[row, place]
        if taught is None:
            loss, token_losses = weighted_cross_entropy(outputs.logits, labels, weights, own)
        else:
            answers = (kinds == ANSWER) | (kinds == COPY) | (kinds == REPLY)
            loss, token_losses = distillation_loss(outputs.logits, taught, labels, weights, answers)
        self.tallies[model.training].add(token_losses, labels, kinds, right)
        return (loss, outputs) if return_outputs else loss

    def own_tokens(self, tokens: int, phase: int) -> range:
        """Those of a window's `tokens` ordinary tokens that this process has logits of: all."""
        return range(tokens)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        for kept in self.distractors.values():
            kept.save(self._distractors_file(output_dir))
        self.accelerator.wait_for_everyone()  # or the main process could call a checkpoint whole that lacks a file

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        file = None if checkpoint is None else self._distractors_file(checkpoint)
        if file is not None and file.exists():
            kept = Distractors.load(file, self.args.device)
            self.distractors[kept.capacity] = kept

    def _distractors_file(self, folder: str) -> Path:
        """Every process keeps landmarks of its own windows."""
        return Path(folder) / f"distractors_{self.args.process_index}.safetensors"

    def whole_model(self) -> Any:
        """The model with all its weights, to be saved; for the main process."""
        return self.model

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **keywords: Any) -> Any:
        """Adds the means of the tally to the metrics."""
        self.tallies[False].sums = None
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **keywords)
        assert output.metrics is not None
        output.metrics.update(self.tallies[False].take(self.accelerator, f"{metric_key_prefix}_"))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log to the lines that carry a training loss."""
        if "loss" in logs:
            logs |= self.tallies[True].take(self.accelerator)
        super().log(logs, start_time)


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
        given = {"landmark_phase": phase, "landmark_gates": stage.gates, "landmark_documents": segments}
        if training:
            given |= {"landmark_jumps": jumps, "landmark_block_dropout": stage.block_dropout}
        return given
    segment = tokens // stage.segments
    if stage.attention in ("full", "recurrent"):
        return {"landmark_reader": Recurrent(segment, segment if stage.segments > 1 else 0)}
    if stage.attention == "knn":
        layer = text_config(config).landmark_memory_layer
        return {"landmark_reader": Memorizing(segment, stage.retrieve, layer)}
    block_size = landmark_settings(config).block_size
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
