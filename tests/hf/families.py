"""Tiny random models of the supported families, one configuration each."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = {
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
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
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
}

# name -> (model_type, what differs, a word of the reason for which convert rejects it)
REJECTED: dict[str, tuple[str, dict, str]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "rotary"),
    "opt": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}, "rotary"),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}, "rotary"),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "rotary"),
    "deepseek_v3": (
        "deepseek_v3",
        {
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
        },
        "latent",
    ),
    "qwen3_next": (
        "qwen3_next",
        {**MOE, "layer_types": ["linear_attention", "full_attention", "full_attention"]},
        "linear_attention",
    ),
}


def build(model_type: str, differences: dict, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SMALL, **differences})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def family(name: str, **changes: object) -> PreTrainedModel:
    model_type, differences = FAMILIES[name]
    return build(model_type, {**differences, **changes})
