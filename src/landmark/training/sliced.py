"""Training with every window cut into slices, one for each process, on top of sharded weights."""

from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from landmark.hf.sequence import WindowSlice
from landmark.hf.settings import Settings, text_config
from landmark.training.plan import Plan
from landmark.training.sharded import ShardedTrainer
from landmark.training.trainer import only_item


class SlicedTrainer(ShardedTrainer):
    """All processes work on the same micro-batch: each has all its tokens, and computes the slice that is its own."""

    @classmethod
    def arguments(cls, plan: Plan, processes: int) -> dict[str, Any]:
        """Those of sharded weights; every process takes part in every micro-batch."""
        return super().arguments(plan, processes) | {"gradient_accumulation_steps": plan.recipe.micro_batches}

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.window_slice = WindowSlice(self.args.process_index, self.args.world_size)

    def own_tokens(self, tokens: int, phase: int) -> range:
        """Those of the slice."""
        block_size = Settings.of(text_config(self.model_config)).block_size
        return self.window_slice.tokens(tokens, block_size, phase)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This process's part of the micro-batch's loss, times the processes: the mean over them is the loss."""
        inputs = inputs | {"landmark_slice": self.window_slice}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss * self.window_slice.slices
        return (loss, outputs) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader:
        """All micro-batches, in every process."""
        assert self.train_dataset is not None
        return self._all_of(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """The same of the validation texts."""
        return self._all_of(self.eval_dataset if eval_dataset is None else eval_dataset)

    def _all_of(self, batches: Any) -> DataLoader:
        return DataLoader(batches, collate_fn=only_item, pin_memory=self.args.dataloader_pin_memory)
