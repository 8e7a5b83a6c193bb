"""Sharded training (FSDP2), and sequence parallelism on top of it, with checkpoints that any number of processes load.

accelerate does the sharding. This adds sharding on CPUs and full, unsharded checkpoints.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from landmark.hf.config import landmark_settings
from landmark.hf.sequence_parallel import WindowSlice
from landmark.readers.memorizing import load_with_gates
from landmark.training.plan import Plan
from landmark.training.trainer import LandmarkTrainer, only_item


class ShardedTrainer(LandmarkTrainer):
    """Fully sharded data parallelism: each process holds a shard of parameters, gradients and optimizer states."""

    optimizer: Any
    lr_scheduler: Any

    @classmethod
    def arguments(cls, plan: Plan, processes: int) -> dict[str, Any]:
        """Arguments of `TrainingArguments` for so many processes."""
        return super().arguments(plan, processes) | {
            "gradient_checkpointing": None,
            "fsdp": True,
            "fsdp_config": {"version": 2, "activation_checkpointing": plan.gradient_checkpointing},
            # Reduces gradients after every micro-batch, so that each process only ever holds its shard.
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        }

    def create_accelerator_and_postprocess(self) -> None:
        """Enables FSDP on CPUs too, where accelerate ignores it, and reduces gradients in float32."""
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        if not self.is_fsdp_enabled:
            plugin_arguments: Any = self.args.fsdp_plugin_args
            PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_arguments)
            self.is_fsdp_enabled = True
        numbers = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(numbers, reduce_dtype=torch.float32)

    def whole_model(self) -> Any:
        """The trained model, loaded from the last checkpoint; for the main process."""
        checkpoint = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        return load_with_gates(Path(str(self.args.output_dir)) / checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        keep = self.args.should_save
        state = tree_map(lambda value: _full(value, keep), self.optimizer.state_dict())
        if keep:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        assert isinstance(self.model, nn.Module)
        weights = load_with_gates(resume_from_checkpoint).state_dict() if self.is_world_process_zero() else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.model, weights, options=options)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert checkpoint is not None
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, values in state["state"].items():
            state["state"][number] = {name: _shard(value, parameters[number]) for name, value in values.items()}
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


def _full(value: Any, keep: bool) -> Any:
    """The full tensor, gathered by all processes; None unless `keep`."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if keep else None


def _shard(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's shard of a state of the parameter's shape; other states are the same everywhere."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    # Every process has read the full tensor, so none is sent.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


class SlicedTrainer(ShardedTrainer):
    """Sequence parallelism: all processes share every window, each computes a slice of it; parameters are sharded."""

    @classmethod
    def arguments(cls, plan: Plan, processes: int) -> dict[str, Any]:
        """Those of FSDP, but every process takes part in every micro-batch."""
        return super().arguments(plan, processes) | {"gradient_accumulation_steps": plan.recipe.micro_batches}

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.window_slice = WindowSlice(self.args.process_index, self.args.world_size)

    def own_tokens(self, tokens: int, phase: int) -> range:
        """The tokens of this process's slice."""
        block_size = landmark_settings(self.model_config).block_size
        return self.window_slice.tokens(tokens, block_size, phase)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This process's part of the loss, times the number of processes: their mean is the loss."""
        inputs = inputs | {"landmark_slice": self.window_slice}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss * self.window_slice.slices
        return (loss, outputs) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader:
        """All micro-batches in every process."""
        assert self.train_dataset is not None
        return self._all_of(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """All validation micro-batches in every process."""
        return self._all_of(self.eval_dataset if eval_dataset is None else eval_dataset)

    def _all_of(self, batches: Any) -> DataLoader:
        return DataLoader(batches, collate_fn=only_item, pin_memory=self.args.dataloader_pin_memory)
