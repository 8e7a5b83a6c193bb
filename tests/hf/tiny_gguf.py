"""A GGUF file of a tiny Llama with random weights and a byte tokenizer."""

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, ROWS, HEADS = 64, 300, 2


def written(path, architecture="llama", context=512, leave_out=None):
    """A model of one layer whose matrices are stored in 4 bits, without the matrices `leave_out` of its layer."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(ROWS)
    words = ["<|endoftext|>", "<|start|>", "<|end|>", "ab", "cd", *sorted(ByteLevel.alphabet())]
    words += [f"<extra{n}>" for n in range(ROWS - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3] * 3 + [1] * (ROWS - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH)}
    shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (WIDTH, WIDTH), "ffn_up": (WIDTH, WIDTH)}
    shapes |= {"ffn_down": (WIDTH, WIDTH)}
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    kind = gguf.GGMLQuantizationType.Q4_1
    matrices = {"token_embd.weight": (ROWS, WIDTH)} | {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    matrices.pop(f"blk.0.{leave_out}.weight", None)
    for name, shape in matrices.items():
        packed = gguf.quants.quantize(rng.normal(0, 0.1, shape).astype(np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
