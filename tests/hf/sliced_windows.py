"""Run in several processes: slices of a window against the whole of it, in every process by itself."""

import torch
import torch.distributed as dist
from families import family

import landmark
from landmark.hf.sequence_parallel import WindowSlice
from landmark.training.processes import leave_group_at_exit

BLOCK_SIZE = 7
# Norms compute in float32, whatever the model does.
NEAR = {"atol": 1e-6, "rtol": 1e-5}
ROWS, TOKENS = 2, 53  # 60 or 61 positions, which no number of processes but 1, 2, 3, 4, 5 or 6 divides

CASES = {
    "grouped heads": ("llama", {"landmark_phase": 3}),
    "plain attention": ("llama", {"landmark_gates": False}),
    "jumps": ("llama", {"landmark_jumps": torch.arange(2 * TOKENS).view(2, TOKENS) % 5}),
    "documents": ("qwen2", {"landmark_documents": (torch.arange(TOKENS) // 20).expand(2, -1), "landmark_phase": 6}),
    "sliding layers and caps": ("gemma2", {"landmark_phase": 5}),
    "sinks": ("gpt_oss", {"landmark_phase": 1}),
}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def check(case: str, checkpointing: bool) -> None:
    name, rules = CASES[case]
    model = family(name).double()
    if hasattr(model.config, "num_local_experts"):
        model.set_experts_implementation("eager")  # the others know no float64
    landmark.convert(model, block_size=BLOCK_SIZE).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 61, (ROWS, TOKENS), generator=generator)
    weights = torch.randn(ROWS, TOKENS, 61, generator=generator, dtype=torch.float64)

    whole = model(input_ids=ids, use_cache=False, **rules).logits
    (whole * weights).sum().backward()
    expected = gradients(model)

    mine = WindowSlice(dist.get_rank(), dist.get_world_size())
    own = mine.tokens(TOKENS, BLOCK_SIZE, rules.get("landmark_phase", 0))
    part = slice(own.start, own.stop)
    logits = model(input_ids=ids, use_cache=False, landmark_slice=mine, **rules).logits
    torch.testing.assert_close(logits, whole[:, part], **NEAR, msg=lambda m: f"{case}: {m}")
    (logits * weights[:, part]).sum().backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        dist.all_reduce(gradient)
        torch.testing.assert_close(
            gradient, expected[parameter], **NEAR, msg=lambda m, p=parameter: f"{case}, {p}: {m}"
        )


if __name__ == "__main__":
    dist.init_process_group("gloo")
    leave_group_at_exit()
    for number, case in enumerate(CASES):
        check(case, checkpointing=number % 2 == 0)
    print(f"{len(CASES)} cases agree")
