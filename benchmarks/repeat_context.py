"""Make a context of many millions of tokens from one of `benchmarks/long_context.py`, without reading them.

    python benchmarks/repeat_context.py SOURCE TARGET --times 10 [--index hierarchical --recall 0.9]

Block keys do not say where a block stands, so the same blocks can stand in a text many times: TARGET names the blocks
of SOURCE again and again (hard links: they take no space). Each key is stated in one of the copies only; in the others
the landmarks of its blocks are those of an average block. What such a context cannot show is how a model would have
read the later copies with the earlier ones in reach; it shows what opening, searching and asking cost at that size.
"""

import argparse
import json
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from long_context import stated_keys

import landmark
from landmark.assets import model_path
from landmark.contexts import disk
from landmark.contexts.context import Context
from landmark.contexts.folders import founding
from landmark.contexts.manifest import Extent, publish, segment_file
from landmark.contexts.reading import Snapshot, encode_state, open_reader
from landmark.contexts.segments import checksums
from landmark.hf.tokenizer import encode
from landmark.index.choose import IndexOptions

SOME = 600  # characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--index", default="auto")
    parser.add_argument("--recall", type=float, default=1.0)
    options = parser.parse_args()
    context = Context.open(options.source, landmark.from_pretrained(model_path()))
    source = open_reader(options.source)
    stated = [blocks for _, blocks in stated_keys(context)]
    with founding(options.target) as lock:
        entries, files = [], 0
        for copy in range(options.times):
            hidden = [block for i, blocks in enumerate(stated) if i % options.times != copy for block in blocks]
            for segment in source.segments:
                files += 1
                first = copy * source.blocks + segment.first
                disk.link(segment.path("blocks"), segment_file(options.target, files, "blocks"))
                write(segment_file(options.target, files, "landmarks"), landmarks(source, segment, hidden))
                texts = {
                    kind: getattr(segment.entry, kind) if copy == 0 else Extent()
                    for kind in ("tokens", "text", "documents")
                }
                for kind in texts:
                    disk.link(segment.path(kind), segment_file(options.target, files, kind))
                entries.append(replace(segment.entry, first=first, owned=False, **texts))
        tensors, metadata = source.state()
        # What its index made of landmarks does not fit those that are hidden now.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("index.")}
        size = context.cache.settings.block_size
        metadata["tokens"] = [metadata["tokens"][0] + (options.times - 1) * source.blocks * size]
        state = encode_state(tensors, metadata)
        write(options.target / source.manifest.state_name, state)
        manifest = replace(
            source.manifest,
            header=source.header | {"copies": options.times},
            segments=tuple(entries),
            state=Extent(len(state), zlib.crc32(state)),
        )
        publish(options.target, manifest)
    lock.close()
    text = encode(context.tokenizer, context.text(context.documents[0])[:SOME]).ids
    memory = {"index": IndexOptions(options.index, recall=options.recall)}
    with Context.open(options.target, context.model, write=True, **memory) as target:
        start = time.perf_counter()
        # What an index makes of landmarks while a text is read, it makes of all of them when the next words come.
        landmark.read(context.model, text, target.cache)
        target._commit()
        print(json.dumps({"tokens": target.tokens_read, "s": time.perf_counter() - start}))


def landmarks(source: Snapshot, segment, hidden: list[int]) -> bytes:  # noqa: ANN001
    """The landmark records of a segment, those of `hidden` blocks like an average one."""
    records = np.concatenate([piece for _, piece in segment.landmark_records()]).copy()
    places = np.array(
        [block - segment.first for block in hidden if segment.first <= block < segment.first + len(records)], int
    )
    for layer in range(len(source.layout.landmarks)):
        records[str(layer)][places] = records[str(layer)].mean(0)
    records["crc32"] = checksums(records)
    return records.tobytes()


def write(path: Path, data: bytes) -> None:
    disk.write(disk.create(path), data, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
