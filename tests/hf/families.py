"""Tiny random models of every family that was tried, and the table of what `convert` makes of them.

    python tests/hf/families.py [--out docs/models.md]

tries them with the transformers that is installed; nothing is downloaded.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, T5Config
from transformers.utils import logging

from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.hf.convert import convert

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRID = ["sliding_attention", "full_attention", "full_attention"]


def _rope(kind: str, **options: object) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


# name -> (model_type, what differs from SMALL)
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {}),
    "llama-linear": ("llama", _rope("linear", factor=2.0)),
    "llama-dynamic": ("llama", _rope("dynamic", factor=2.0)),
    "llama-llama3": (
        "llama",
        _rope(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama-yarn": ("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 128}),
    "mixtral": ("mixtral", {**MOE, "sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {**MOE, "decoder_sparse_step": 1}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 16, "layer_types": HYBRID, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": 16, "layer_types": HYBRID, "query_pre_attn_scalar": 8}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "phi3-longrope": (
        "phi3",
        {
            **_rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=64),
            "original_max_position_embeddings": 64,
        },
    ),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window": 16, "layer_types": HYBRID}),
    "glm4": ("glm4", {"partial_rotary_factor": 0.5}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "gpt_oss": ("gpt_oss", {**MOE, "sliding_window": 16, "layer_types": HYBRID}),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "bitnet": ("bitnet", {}),
    "doge": ("doge", {}),
    "ernie4_5": ("ernie4_5", {}),
    "exaone4": ("exaone4", {}),
    "glm": ("glm", {"partial_rotary_factor": 0.5}),
    "glm4_moe": ("glm4_moe", {**MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}),
    "granitemoe": ("granitemoe", MOE),
    "helium": ("helium", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {}),
    "olmo": ("olmo", {}),
    "olmo3": ("olmo3", {"sliding_window": 16, "layer_types": HYBRID}),
    "olmoe": ("olmoe", MOE),
    "persimmon": ("persimmon", {"partial_rotary_factor": 0.5}),
    "phimoe": ("phimoe", MOE),
    "qwen2_moe": ("qwen2_moe", MOE),
    "seed_oss": ("seed_oss", {}),
    "vaultgemma": ("vaultgemma", {"sliding_window": 16, "layer_types": HYBRID}),
}

LATENT: dict[str, Any] = {
    **MOE,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
}

# name -> (model_type, what differs, a word of the reason for which convert rejects it)
REJECTED: dict[str, tuple[str, dict, str]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "rotary"),
    "opt": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}, "rotary"),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}, "ALiBi"),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "rotary|rotates"),
    "xglm": (
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
        "embedding of each position",
    ),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "embedding of each position"),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "ALiBi"),
    "codegen": ("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "code of its own|rotates"),
    "gpt_neox_japanese": ("gpt_neox_japanese", {}, "code of its own"),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5}, "does not hand keyword arguments on"),
    "nemotron": ("nemotron", {"partial_rotary_factor": 0.5}, "does not hand keyword arguments on"),
    "mamba": ("mamba", {"state_size": 4}, "linear_attention|carry a state"),
    "recurrent_gemma": ("recurrent_gemma", {}, "linear_attention|module of their own"),
    "llama4": ("llama4_text", {**MOE, "intermediate_size_mlp": 48}, "chunked_attention"),
    "deepseek_v2": ("deepseek_v2", LATENT | {"topk_method": "greedy"}, "latent"),
    "deepseek_v3": ("deepseek_v3", LATENT, "latent"),
    "diffllama": ("diffllama", {}, "more than once a layer"),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "conv"),
    "minimax": ("minimax", {**MOE, "layer_types": ["full_attention"] * 3}, "cannot be read through a cache"),
    "qwen3_next": (
        "qwen3_next",
        {**MOE, "layer_types": ["linear_attention", "full_attention", "full_attention"]},
        "linear_attention",
    ),
}


def build(model_type: str, differences: dict) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **differences})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def family(name: str, **changes: object) -> PreTrainedModel:
    model_type, differences = FAMILIES[name]
    return build(model_type, {**differences, **changes})


_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGES = _VISION | {"image_size": 28, "patch_size": 14}


def _around_text(model_type: str, text: str, vision: dict[str, Any], **more: Any) -> PreTrainedModel:
    inside = SMALL | ({} if text in ("llama", "qwen2_vl_text") else {"query_pre_attn_scalar": 8})
    if text == "qwen2_vl_text":
        inside |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
    config = AutoConfig.for_model(model_type, text_config=inside | {"model_type": text}, vision_config=vision, **more)
    return AutoModelForImageTextToText.from_config(config)


def _adapted() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(family("llama"), LoraConfig(target_modules=["q_proj"]))


def _offloaded() -> nn.Module:
    from accelerate import cpu_offload

    return cpu_offload(family("llama"))


def _sequence_to_sequence() -> PreTrainedModel:
    return transformers.T5ForConditionalGeneration(
        T5Config(vocab_size=61, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    )


# What is no model to convert, or none as yet: how to make one, and a word of the reason.
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "T5": (_sequence_to_sequence, "not a decoder"),
    "Gemma 3 with images": (
        lambda: _around_text("gemma3", "gemma3_text", _IMAGES, mm_tokens_per_image=4),
        r"around a text model \(gemma3_text\).* convert it",
    ),
    "LLaVA": (lambda: _around_text("llava", "llama", _IMAGES | {"model_type": "clip_vision_model"}), r"\(llama\)"),
    "Qwen2-VL": (
        lambda: _around_text(
            "qwen2_vl", "qwen2_vl_text", {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
        ),
        "around a text model",
    ),
    "a model with adapters of peft": (_adapted, r"convert\(model\.get_base_model\(\)\)"),
    "a model of torch.compile": (lambda: torch.compile(family("llama")), r"convert\(model\._orig_mod\)"),
    "a model on the meta device": (lambda: nn.Module.to(family("llama"), "meta"), "load them first"),
    "a model with offloaded weights": (_offloaded, "without device_map"),
}


def tried(model: Any) -> str:
    """ "works", or why not. Works: converted, and read through memory with every block opened as without memory."""
    try:
        converted: Any = convert(model, block_size=7, retrieve=16, positions="true", trained_tokens=1)
    except ValueError as error:
        return str(error)
    ids = torch.randint(3, 61, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = LandmarkCache(converted.config, chunk_size=14)
        read = converted(input_ids=ids, **cache_kwargs(converted, cache)).logits
        torch.testing.assert_close(read, converted(input_ids=ids, use_cache=False).logits, atol=1e-4, rtol=1e-4)
    return "works"


def table() -> str:
    """docs/models.md, as the installed transformers makes it."""
    lines = [HEADER.format(version=transformers.__version__)]
    for name, (model_type, differences) in FAMILIES.items():
        lines.append(f"| {name} | {_shown(model_type, differences)} | {tried(family(name))} |")
    lines.append(f"\n{REFUSED}")
    for name, (model_type, differences, _) in REJECTED.items():
        lines.append(f"| {name} | {_shown(model_type, differences)} | {tried(build(model_type, differences))} |")
    lines.append(f"\n{OTHER_KINDS}")
    lines += [f"| {name} | {tried(make())} |" for name, (make, _) in OTHERS.items()]
    return "\n".join(lines) + "\n"


def _shown(model_type: str, differences: dict[str, Any]) -> str:
    """The settings that a configuration was tested with, those that only make a model small left out."""
    plain = ("sliding_window", "partial_rotary_factor", "rotary_pct", "no_rope_layers")
    shown = [f"{name} {differences[name]}" for name in plain if differences.get(name) is not None]
    if "rope_parameters" in differences:
        shown.append(f"rope {differences['rope_parameters']['rope_type']}")
    if "layer_types" in differences:
        shown.append("layers " + ", ".join(kind.removesuffix("_attention") for kind in differences["layer_types"]))
    if "num_experts" in differences:
        shown.append(f"{differences['num_experts']} experts")
    return f"`{model_type}`" + (f": {'; '.join(shown)}" if shown else "")


HEADER = """# Models

What `landmark.convert` makes of tiny random models of each family, with transformers {version}. *Works* means:
converted, with each layer's rotation proved from outside, and a text read through memory with every block opened as
without memory. The tables are what this command gives, for another release of transformers as well:

```sh
python tests/hf/families.py --out docs/models.md
```

Sliding layers of a hybrid model stay as they are; landmarks are in its full layers. A model whose every layer slides
gets landmarks in all.

## Families that work

| family | tested as | |
| --- | --- | --- |"""
REFUSED = """## Families that are refused

| family | tested as | reason |
| --- | --- | --- |"""
OTHER_KINDS = """## Other kinds of models

| what | reason |
| --- | --- |"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tries tiny random models of every family; prints or writes a table.")
    parser.add_argument("--out", type=Path, help="file to write; standard output by default")
    out: Path | None = parser.parse_args().out
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found = table()
    if out is None:
        print(found, end="")
    else:
        out.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
