"""A second level of landmarks: can one key for a group of blocks select the groups that hold a query's best blocks?

The model in the package reads two texts, and the landmark keys and queries of the layers that search are recorded. A
group of consecutive blocks gets one key, made of its landmark keys: their mean (the baseline), or a gate trained on the
first text by cross entropy against the groups of the best blocks: a weighted sum (`pooled`) or a small network
(`network`).
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import landmark
from benchmarks.landmark_keys import recording_cache
from landmark.assets import model_path
from landmark.data.text import read_text
from landmark.hf.tokenizer import encode, load_tokenizer
from reproduce.studies.options import GroupLandmarksOptions

BEST = 2  # blocks of each query that should be found
OPENED = (2, 4, 8, 16)
QUERIES = 8192
STEPS, BATCH, RATE = 1000, 256, 2e-3


class Searches(NamedTuple):
    """One head of one layer: the `keys [n,D]` it searched and its `queries [T,D]`."""

    keys: Tensor
    queries: Tensor


class Pooled(nn.Module):
    """Groups `[G,g,D]` to keys `[G,D]`: a sum of transformed landmark keys, weighted by a softmax within the group."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.turn = nn.Linear(width, width)
        nn.init.eye_(self.turn.weight)

    def forward(self, groups: Tensor) -> Tensor:
        return (self.weigh(groups).softmax(1) * self.turn(groups)).sum(1)


class Network(nn.Module):
    """Groups `[G,g,D]` to keys `[G,D]`: the mean and what a network of two layers makes of all landmark keys."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(size * width, 256), nn.GELU(), nn.Linear(256, width))

    def forward(self, groups: Tensor) -> Tensor:
        return groups.mean(1) + self.inner(groups)


def run(options: GroupLandmarksOptions) -> int:
    """Trains the gates and prints the shares."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    texts = ["\n".join(read_text(path) for path in paths) for paths in (options.train, options.test)]
    trained_on, tested_on = (record(text, options.tokens) for text in texts)
    for size in (16, 32):
        shares: dict[str, list[Tensor]] = {"mean": [], "pooled": [], "network": []}
        for seen, held_out in zip(trained_on, tested_on, strict=True):
            width = seen.keys.shape[-1]
            shares["mean"].append(found(held_out, size, lambda groups: groups.mean(1)))
            for name, kind in (("pooled", Pooled), ("network", Network)):
                shares[name].append(found(held_out, size, train(kind(size, width), seen, size)))
        for name, values in shares.items():
            of_heads = torch.stack(values)
            row = {"group": size, "groups": len(tested_on[0].keys) // size, "key": name}
            for opened, share in zip(OPENED, of_heads.unbind(1), strict=True):
                row[f"opened_{opened}"] = [round(float(x), 3) for x in (share.mean(), share.min(), share.max())]
            print(json.dumps(row), flush=True)
    return 0


def record(text: str, tokens: int) -> list[Searches]:
    """Landmark keys of the first `tokens` tokens, and queries of the next `QUERIES`, for each head that searches."""
    model = landmark.from_pretrained(model_path())
    ids = encode(load_tokenizer(model_path(), model), text[: 5 * (tokens + QUERIES)]).ids
    if len(ids) < tokens + QUERIES:
        raise ValueError(f"{len(ids)} tokens are fewer than the {tokens + QUERIES} to be read: give more texts")
    # The first layer is left out: its landmark keys are all equal.
    cache, recorders = recording_cache(model.config, range(1, model.config.num_hidden_layers))
    landmark.read(model, ids[:tokens], cache)
    numbers = torch.arange(tokens // cache.settings.block_size - 1)[None]
    keys = [recorder.keys(numbers)[0] for recorder in recorders]  # [Hkv,n,D]
    for recorder in recorders:
        recorder.asked.clear()  # only queries about complete blocks
    landmark.read(model, ids[tokens : tokens + QUERIES], cache)
    searches = []
    for of_layer, recorder in zip(keys, recorders, strict=True):
        queries = torch.cat(recorder.asked, 2)[0]  # [H,T,D]
        shared = of_layer.repeat_interleave(len(queries) // len(of_layer), 0)
        searches += [Searches(*head) for head in zip(shared, queries, strict=True)]
    return searches


def train(gate: nn.Module, searches: Searches, size: int) -> nn.Module:
    """Trains a gate by cross entropy against the groups of each query's best blocks; groups begin anywhere."""
    temperature = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([*gate.parameters(), temperature], lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    scale = searches.keys.shape[-1] ** -0.5
    for _ in range(STEPS):
        groups = grouped(searches.keys, size, int(torch.randint(size, ())))
        queries = searches.queries[torch.randint(len(searches.queries), (BATCH,))]
        best = (queries @ groups.flatten(0, 1).T).topk(BEST).indices // size
        logits = queries @ gate(groups).T * scale * temperature.exp()
        loss = -logits.log_softmax(-1).gather(1, best).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return gate.eval()


@torch.no_grad()
def found(searches: Searches, size: int, gate: Callable[[Tensor], Tensor]) -> Tensor:
    """Recall of the best blocks within the best groups, for each number of groups in `OPENED`."""
    groups = grouped(searches.keys, size, 0)
    best = (searches.queries @ groups.flatten(0, 1).T).topk(BEST).indices // size
    ranked = (searches.queries @ gate(groups).T).topk(max(OPENED)).indices
    return torch.stack([(best[:, :, None] == ranked[:, None, :n]).any(-1).float().mean() for n in OPENED])


def grouped(keys: Tensor, size: int, start: int) -> Tensor:
    """`keys [n,D]` as whole groups `[G,size,D]` from `start` on."""
    count = (len(keys) - start) // size
    return keys[start : start + count * size].view(count, size, -1)
