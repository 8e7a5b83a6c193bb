"""The Hugging Face Trainer with weighted losses, micro-batches in fixed order, and recall metrics."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PretrainedConfig, Trainer

from landmark.data.recall import ANSWER, COPY, HIDDEN, REPLY, TEXT
from landmark.hf.config import landmark_settings, text_config
from landmark.readers.distractors import DistractedLandmarks, Distractors
from landmark.readers.memorizing import Memorizing
from landmark.readers.recurrent import Recurrent, RecurrentLandmarks
from landmark.readers.retrieval import RetrievedLandmarks
from landmark.training.loss import IGNORED, distillation_loss, weighted_cross_entropy
from landmark.training.models import Teacher
from landmark.training.plan import Plan
from landmark.training.stages import Stage


def only_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate function for datasets whose items are micro-batches."""
    (item,) = items
    return item


class Tally:
    """Sums of text loss, answer loss and correct answer tokens since the last `take`."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, token_losses: Tensor, labels: Tensor, kinds: Tensor, right: Tensor) -> None:
        """Adds a micro-batch: `[B, T]` each, by the position of the label; `right [n]` for its answer tokens."""
        text = (kinds == TEXT) & (labels != IGNORED)
        text[:, 0] = False
        answers = predicted_answers(kinds)
        losses = [(token_losses * text).sum(), (token_losses * answers).sum()]
        counts = [text.sum(), right.sum(), answers.sum()]
        batch = torch.stack([value.double() for value in losses + counts])
        self.sums = batch if self.sums is None else self.sums + batch

    def take(self, accelerator: Any, prefix: str = "") -> dict[str, float]:
        """Means over all processes in nats a token; `answer_accuracy` is the share of correct answer tokens."""
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


def predicted_answers(kinds: Tensor) -> Tensor:
    """Answer tokens that can be predicted, `[B, T]` (bool): all but those at position 0."""
    answers = kinds == ANSWER
    answers[:, 0] = False
    return answers


class LandmarkTrainer(Trainer):
    """Trains on the micro-batches of `StageBatches`, in their order."""

    @classmethod
    def arguments(cls, plan: Plan, processes: int) -> dict[str, Any]:
        """Arguments of `TrainingArguments` for so many processes."""
        return {
            "gradient_accumulation_steps": plan.recipe.micro_batches // processes,
            "ddp_find_unused_parameters": False,
            "gradient_checkpointing": plan.gradient_checkpointing or None,  # newer releases warn of False
        }

    def __init__(self, *, teacher: Teacher | None = None, **arguments: Any) -> None:
        super().__init__(data_collator=only_item, **arguments)
        self.teacher = teacher
        # The loss is a mean over the micro-batch, so the Trainer has to divide by their number.
        self.model_accepts_loss_kwargs = False
        self.model_config: PretrainedConfig = self.model.config  # type: ignore[union-attr]
        self.tallies = {True: Tally(), False: Tally()}  # by model.training
        self.distractors: dict[int, Distractors] = {}  # by their capacity

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
        """The weighted loss of a micro-batch, whose logits it overwrites."""
        inputs = dict(inputs)
        labels, weights, kinds = (inputs.pop(name) for name in ("labels", "loss_weights", "token_kinds"))
        stage, phase, jumps, documents = (inputs.pop(name) for name in ("stage", "phase", "jumps", "documents"))
        inputs |= attention_arguments(
            self.model_config,
            stage,
            phase,
            jumps,
            documents,
            tokens=labels.shape[1],
            training=model.training,
            plain=(kinds == TEXT).all(1),
            answers=predicted_answers(kinds),
            distractors=self.distractors,
        )
        own = self.own_tokens(labels.shape[1], phase=phase)
        teacher_logits = None
        if self.teacher is not None:
            with self.accelerator.autocast():
                teacher_logits = self.teacher.logits(self.accelerator.unwrap_model(model), inputs["input_ids"])
        outputs = model(**inputs, use_cache=False)
        # Metrics count only what these logits predict.
        others = torch.ones(labels.shape[1], dtype=torch.bool, device=labels.device)
        others[own.start + 1 : own.stop + 1] = False
        kinds = kinds.masked_fill(others, HIDDEN)
        row, position = predicted_answers(kinds).nonzero(as_tuple=True)
        right = outputs.logits[row, position - 1 - own.start].argmax(-1) == labels[row, position]
        if teacher_logits is None:
            loss, token_losses = weighted_cross_entropy(outputs.logits, labels, weights, own)
        else:
            answers = (kinds == ANSWER) | (kinds == COPY) | (kinds == REPLY)
            loss, token_losses = distillation_loss(outputs.logits, teacher_logits, labels, weights, answers)
        self.tallies[model.training].add(token_losses, labels, kinds, right)
        return (loss, outputs) if return_outputs else loss

    def own_tokens(self, tokens: int, phase: int) -> range:
        """The range of a window's ordinary tokens whose logits this process computes: all."""
        return range(tokens)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        for kept in self.distractors.values():
            kept.save(self._distractors_file(output_dir))
        self.accelerator.wait_for_everyone()  # else the main process could complete a checkpoint that lacks a file

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        file = None if checkpoint is None else self._distractors_file(checkpoint)
        if file is not None and file.exists():
            kept = Distractors.load(file, self.args.device)
            self.distractors[kept.capacity] = kept

    def _distractors_file(self, folder: str) -> Path:
        """Each process keeps the landmarks of its own windows."""
        return Path(folder) / f"distractors_{self.args.process_index}.safetensors"

    def whole_model(self) -> Any:
        """The model with all its parameters, to be saved; for the main process."""
        return self.model

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **keywords: Any) -> Any:
        """Adds the recall metrics."""
        self.tallies[False].sums = None
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **keywords)
        assert output.metrics is not None
        output.metrics.update(self.tallies[False].take(self.accelerator, f"{metric_key_prefix}_"))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the recall metrics since the last log to lines with a training loss."""
        if "loss" in logs:
            logs |= self.tallies[True].take(self.accelerator)
        super().log(logs, start_time)


def attention_arguments(
    config: PretrainedConfig,
    stage: Stage,
    phase: int,
    jumps: Tensor | None,
    documents: Tensor | None,
    *,
    tokens: int,
    training: bool,
    plain: Tensor,
    answers: Tensor,
    distractors: dict[int, Distractors],
) -> dict[str, Any]:
    """Keyword arguments for the attention of a stage, in a forward over windows of `tokens` ordinary tokens.

    Windows begin at `phase` within a block. Position jumps and block dropout apply in training only. `plain [B]` marks
    windows without recall tasks, `answers [B, T]` the tokens of answers; `documents [B, T]` numbers packed documents.
    `distractors` holds those of earlier windows, by their capacity.
    """
    if stage.attention == "landmark":
        arguments = {"landmark_phase": phase, "landmark_gates": stage.gates, "landmark_documents": documents}
        if training:
            arguments |= {"landmark_jumps": jumps, "landmark_block_dropout": stage.block_dropout}
        return arguments
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
    assert stage.attention == "landmark_recurrent", "all attentions of stages are covered"
    keep = segment + segment // block_size
    return {"landmark_reader": RecurrentLandmarks(segment, keep, block_size, phase=phase)}
