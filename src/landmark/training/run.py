"""Runs a training: tokenized text, model, stages, checkpoints, and the finished model."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from landmark.data.chat import ChatFormat
from landmark.data.text import check_files
from landmark.data.tokens import MANIFEST, TokenFile, tokenize
from landmark.files import written_whole
from landmark.hf.config import landmark_settings
from landmark.process_memory import keep_freed_pages
from landmark.training.callbacks import Report, StopOnSignal, TrainedTokens
from landmark.training.models import (
    Teacher,
    block_size_of,
    check_packages,
    compute_dtype,
    load_model,
    load_teacher,
    read_config,
    tokenizer_of,
)
from landmark.training.options import TrainOptions
from landmark.training.plan import Plan, plan_of
from landmark.training.processes import check_processes, leave_group_at_exit, stay_in_group_at_exit
from landmark.training.run_lock import check_claim, claim, only_one
from landmark.training.stages import Stage, StageBatches, TooShort, check_blocks, check_length, tokens_per_step
from landmark.training.trainer import LandmarkTrainer

FINAL = "model"
ADAPTER = "adapter"
# Seed of the validation windows.
EVAL_SEED = 1


def train(training: TrainOptions | Plan) -> Path:
    """Trains by options or a plan, or resumes the training in the folder `out`; returns the folder of the final model.

    Raises ValueError for invalid trainings, and KeyboardInterrupt if stopped by a signal (after a checkpoint).
    """
    plan = training if isinstance(training, Plan) else plan_of(training)
    recipe = plan.recipe
    check_packages(plan)
    if not torch.cuda.is_available():
        # With `cpu:1` in the second process, transformers 5.17 could not load a checkpoint.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    # A single process, unless torchrun started more. accelerate does not detect a missing GPU by itself.
    processes = PartialState(cpu=not torch.cuda.is_available())
    leave_group_at_exit()
    check_processes(plan, processes.num_processes)
    if not torch.cuda.is_available():
        keep_freed_pages()
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    disable_progress_bar()  # of every checkpoint, which would break up our own
    set_seed(plan.seed)

    check_claim(plan.out, plan.identity())
    validation = None
    with processes.main_process_first():  # the others reuse its results
        check_files((*plan.texts, *plan.validation))
        read_config(plan)  # before the tokenizer: of a folder that holds no model, that is the error to report
        new = _new_tokenizer(plan)
        tokenizer = tokenizer_of(plan)
        with _removed_on_error(new):
            check_blocks(recipe.stages, block_size_of(plan))
            texts = _tokenized(plan.texts, tokenizer, plan.tokens or plan.out / "tokens", recipe.stages, "text")
        if plan.validation:
            folder, last = plan.out / "validation_tokens", recipe.stages[-1:]
            validation = _tokenized(plan.validation, tokenizer, folder, last, "validation text")
        claim(plan.out, plan.identity() | {"tokens_sha256": texts.checksum})
    final = plan.out / FINAL
    if (final / "config.json").exists():
        print(f"{plan.out} is finished: the model is in {final}", file=sys.stderr)
        return final

    with only_one(plan.out) if processes.is_main_process else nullcontext():
        try:
            _train(plan, tokenizer, texts, validation, final)
        except Exception:
            stay_in_group_at_exit()
            raise
        processes.wait_for_everyone()
    return final


def _train(
    plan: Plan, tokenizer: PreTrainedTokenizerFast, texts: TokenFile, validation: TokenFile | None, final: Path
) -> None:
    """Trains from the last checkpoint, if any, and saves the final model."""
    model: Any = load_model(plan, tokenizer)
    teacher = load_teacher(plan, model)
    if plan.adapter is not None:
        from landmark.training.adapters import adapt  # peft is an extra

        model = adapt(model, plan.adapter, base=str(plan.model))
    trainer, report = _trainer(plan, model, teacher, tokenizer, texts, validation)
    try:
        with StopOnSignal() as stop:
            trainer.add_callback(stop)
            trainer.train(resume_from_checkpoint=last_checkpoint(plan.out))
        if stop.requested:
            raise KeyboardInterrupt
        if validation is not None and not _evaluated(trainer):
            trainer.evaluate()
    finally:
        report.close()
    if trainer.is_world_process_zero():
        _save(trainer.whole_model(), tokenizer, final, plan.save_dtype, adapted=plan.adapter is not None)


def _evaluated(trainer: LandmarkTrainer) -> bool:
    """Whether the Trainer evaluated the last step by itself, which depends on its release."""
    state = trainer.state
    return any("eval_loss" in line and line["step"] == state.global_step for line in state.log_history)


def last_checkpoint(out: Path) -> str | None:
    """The newest complete checkpoint, if any."""
    steps = {}
    for folder in out.glob("checkpoint-*"):
        # The Trainer writes this file last: an incomplete checkpoint has none, or one that does not parse.
        state = folder / "trainer_state.json"
        try:
            steps[json.loads(state.read_text(encoding="utf-8"))["global_step"]] = folder
        except (FileNotFoundError, json.JSONDecodeError):
            continue
    return str(steps[max(steps)]) if steps else None


def _new_tokenizer(plan: Plan) -> Path | None:
    """The folder that is to be made for a tokenizer, if one is."""
    folder = Path(str(plan.tokenizer))
    return None if plan.vocabulary is None or folder.exists() else folder


@contextmanager
def _removed_on_error(folder: Path | None) -> Iterator[None]:
    """Removes `folder` if the texts turn out too short, so that the next attempt does not reuse it."""
    try:
        yield
    except TooShort:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _tokenized(
    sources: tuple[str, ...], tokenizer: PreTrainedTokenizerFast, folder: Path, stages: Sequence[Stage], what: str
) -> TokenFile:
    """Tokenizes `sources`, or reuses `folder`; raises TooShort if they are shorter than a window of `stages`."""
    eos_id: Any = tokenizer.eos_token_id
    progress = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    task = progress.add_task("tokenizing", total=None)
    complete = (folder / MANIFEST).exists()
    with progress:
        tokens = tokenize(
            sources,
            tokenizer.backend_tokenizer,
            folder,
            eos_id=eos_id,
            on_document=lambda done: progress.update(task, description=f"tokenizing: {done.stop:,} tokens"),
        )
    with _removed_on_error(None if complete else folder):
        check_length(tokens.ids, stages, what)
    return tokens


def _kind(plan: Plan) -> type[LandmarkTrainer]:
    if plan.parallel in (None, "ddp"):
        return LandmarkTrainer
    # Imported late: not every build of PyTorch has what these need.
    from landmark.training.sharded import ShardedTrainer, SlicedTrainer

    return {"fsdp": ShardedTrainer, "sequence": SlicedTrainer}[plan.parallel]


def _trainer(
    plan: Plan,
    model: Any,
    teacher: Teacher | None,
    tokenizer: PreTrainedTokenizerFast,
    texts: TokenFile,
    validation: TokenFile | None,
) -> tuple[LandmarkTrainer, Report]:
    block_size = landmark_settings(model.config).block_size
    arguments = _arguments(plan, has_validation=validation is not None)
    backend = tokenizer.backend_tokenizer
    has_chat = any(stage.recall.chat for stage in plan.recipe.stages)
    chat_format = ChatFormat.of(tokenizer) if has_chat else None
    batches = StageBatches(
        texts.ids,
        backend,
        plan.recipe.stages,
        block_size=block_size,
        seed=plan.seed,
        micro_batches=plan.recipe.micro_batches,
        document_stops=_document_stops(texts),
        chat_format=chat_format,
    )
    trainer = _kind(plan)(
        model=model,
        teacher=teacher,
        args=arguments,
        train_dataset=batches,
        eval_dataset=_validation_batches(plan, validation, backend, block_size, chat_format),
    )
    trainer.remove_callback(PrinterCallback)
    step_tokens, teaching = _tokens_of_steps(plan, block_size)
    trainer.add_callback(TrainedTokens(model.config, teaching))
    report = Report(step_tokens, plan.json)
    if arguments.process_index == 0:
        trainer.add_callback(report)
    return trainer, report


def _tokens_of_steps(plan: Plan, block_size: int) -> tuple[list[int], list[int]]:
    """Ordinary tokens of each step, and those of them that are read with landmarks."""
    step_tokens: list[int] = []
    teaching: list[int] = []
    for stage in plan.recipe.stages:
        tokens = tokens_per_step(stage, block_size, plan.recipe.micro_batches)
        step_tokens += [tokens] * stage.steps
        teaching += [tokens if stage.has_landmarks and stage.gates else 0] * stage.steps
    return step_tokens, teaching


def _validation_batches(
    plan: Plan, validation: TokenFile | None, tokenizer: Any, block_size: int, chat_format: ChatFormat | None
) -> StageBatches | None:
    """Plain windows of the last stage's length, then recall windows if that stage has any."""
    if validation is None:
        return None
    last = plan.recipe.stages[-1]
    if last.distractors:
        last = replace(last, attention="landmark", distractors=0)
    steps = max(1, plan.eval_windows // last.batch_size)
    plain = replace(last, steps=steps, recall_fraction=0.0, gates=True)
    stages = [plain]
    if last.recall_fraction > 0:
        stages.append(replace(plain, recall_fraction=1.0))
    stops = _document_stops(validation)
    return StageBatches(
        validation.ids,
        tokenizer,
        stages,
        block_size=block_size,
        seed=EVAL_SEED,
        document_stops=stops,
        chat_format=chat_format,
    )


def _document_stops(texts: TokenFile) -> list[int]:
    return [document.stop for document in texts.documents]


def _arguments(plan: Plan, has_validation: bool) -> TrainingArguments:
    numbers = compute_dtype(plan.precision)
    return TrainingArguments(
        output_dir=str(plan.out),
        max_steps=plan.recipe.steps,
        per_device_train_batch_size=1,  # an item of the dataset is a micro-batch
        per_device_eval_batch_size=1,
        use_cpu=not torch.cuda.is_available(),
        learning_rate=plan.recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.recipe.final_learning_rate},
        warmup_steps=plan.recipe.warmup_steps,
        weight_decay=plan.recipe.weight_decay,
        adam_beta1=plan.recipe.betas[0],
        adam_beta2=plan.recipe.betas[1],
        max_grad_norm=plan.recipe.clip,
        optim="adamw_torch_fused",
        bf16=numbers == torch.bfloat16,
        fp16=numbers == torch.float16,
        logging_steps=plan.log_every,
        logging_nan_inf_filter=False,  # a loss that is not finite must show
        eval_strategy="steps" if has_validation else "no",
        eval_steps=plan.eval_every,
        save_steps=plan.save_every,
        save_total_limit=2,
        prediction_loss_only=True,
        use_cache=True,  # ends up in the saved configuration; forwards of the training pass False
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        seed=plan.seed,
        **_kind(plan).arguments(plan, PartialState().num_processes),
    )


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, final: Path, dtype: str, *, adapted: bool) -> None:
    """Writes the final model, complete or not at all."""
    if adapted:
        from landmark.training.adapters import merged, name_base  # peft is an extra

        adapter = final.with_name(ADAPTER)
        model.save_pretrained(adapter)
        name_base(model, adapter)
        model = merged(model, adapter)
    with written_whole(final) as partial:
        model.to(getattr(torch, dtype)).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
