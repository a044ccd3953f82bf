"""Tiny random models of every causal architecture that transformers can build."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 259
"""Size of the vocabulary of the built-in tiny model's tokenizer, which all these models use."""
LARGEST = 20_000_000
"""Largest number of parameters. A configuration that cannot be made this small counts as not buildable."""
HEADS, KEY_VALUE_HEADS, HEAD, HIDDEN = 4, 2, 16, 64
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "decoder_hidden_size", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("embedding_size", "lru_width", "dim_model", "attention_hidden_size", "emb_dim"), HIDDEN),
    **dict.fromkeys(
        ("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_inner", "dff", "dim_ff", "feed_forward_size"), 96
    ),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_hidden_size", "shared_intermediate_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "dense_intermediate_size", "intermediate_size_mlp"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "linear_num_value_heads", "linear_num_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("swa_num_key_value_heads", "num_global_key_value_heads"), KEY_VALUE_HEADS),
    "swa_num_attention_heads": HEADS,
    **dict.fromkeys(("head_dim", "attention_head_dim", "v_head_dim", "d_kv", "dim_head"), HEAD),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "qk_nope_head_dim", "kv_channels"), HEAD),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "global_head_dim", "index_head_dim"), HEAD),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length"), 128),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "sliding_window_size"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "hidden_size_per_layer_input": 16,
    "index_n_heads": 2,
    "index_topk": 64,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_ssm": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_ngroups": 1,
    "n_groups": 1,
    "n_mamba_heads": 2,
    "mamba_dt_rank": 4,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "time_step_rank": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Values that make a configuration small, for the fields that it has."""
SPECIAL: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
    | {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
    | {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "num_mem_blocks": 1,
    },
    "reformer": {"axial_pos_embds": False, "is_decoder": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD, "moe_topk": 2},
    "ministral": {"head_dim": HEAD},
    "nemotron": {"num_key_value_heads": KEY_VALUE_HEADS, "head_dim": HEAD},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
    | {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 64}
    | {"indexer_compress_ratio": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}}
    | {"ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": HIDDEN}},
    "zaya": {"num_experts_per_tok": 1},
    "bert-generation": {"is_decoder": True},
}
"""Further values that a model type needs."""


class NotBuildable(Exception):
    """Raised if transformers cannot make a small model of a type from its configuration alone."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """Make the type's default configuration small, with one layer of each kind. Raises NotBuildable."""
    try:
        default = CONFIG_MAPPING[model_type]()
        small = _shrunk(default, SPECIAL.get(model_type, {}))
    except Exception as error:
        raise NotBuildable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
    return small


def _shrunk(default: PretrainedConfig, special: dict[str, Any]) -> PretrainedConfig:
    values = default.to_dict()
    known = {name: value for name, value in SMALL.items() if values.get(name) is not None}
    if "qk_rope_head_dim" in known and "head_dim" in known:
        known["head_dim"] = known["qk_rope_head_dim"]  # compressed attention rotates only this part of a head
    kinds = {
        name: list(dict.fromkeys(values[name])) for name in values if name.endswith("layer_types") and values[name]
    }
    kinds |= (
        {"layers_block_type": list(dict.fromkeys(values["layers_block_type"]))}
        if values.get("layers_block_type")
        else {}
    )
    longest = max(map(len, kinds.values()), default=0)
    if longest:
        layers = max(2, longest)
        known |= {name: (found * layers)[:layers] for name, found in kinds.items()}
        known["num_hidden_layers"] = layers
    if "kv_lora_rank" in known:
        known["num_key_value_heads"] = HEADS  # compressed keys and values are expanded for every head
    for name, sub in vars(default).items():
        if isinstance(sub, PretrainedConfig):
            known[name] = _shrunk(sub, {})
    known |= special
    return type(default)(**known)


def tiny_model(model_type: str) -> Any:
    """Make a random model of the type with weights large enough to show differences. Raises NotBuildable."""
    config = tiny_config(model_type)
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            raise NotBuildable(f"{size / 1e6:.0f} M parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1 and 0.0 < float(parameter.std()) < 0.15:
                        parameter.mul_(0.15 / parameter.std())
    except NotBuildable:
        raise
    except Exception as error:
        raise NotBuildable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
    return model.eval()
