"""The dimensions of the `stories` model, its special tokens, and the JSON files that tell them. Needs Python alone."""

SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>",
                  "<|end|>", "<|message|>", "<|call|>"]
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 4, 256, 8, 2, 64
EXPERTS, ACTIVE, EXPERT_WIDTH = 16, 4, 128
VOCABULARY, WINDOW = 4096, 128
EPSILON, SWIGLU_LIMIT, SWIGLU_ALPHA = 1e-5, 7.0, 1.702
ROPE_THETA, YARN_FACTOR, BETA_FAST, BETA_SLOW, ORIGINAL_POSITIONS = 150000, 32.0, 32.0, 1.0, 4096


def special_id(name):
    """The special tokens are the last ids of the vocabulary."""
    return VOCABULARY - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(name)


def is_sliding(layer):
    return layer % 2 == 0


def config(plain):
    """config.json. plain: the experts are BF16."""
    values = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": special_id("<|return|>"),
        "pad_token_id": special_id("<|endoftext|>"),
        "experts_per_token": ACTIVE,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initial_context_length": ORIGINAL_POSITIONS,
        "initializer_range": 0.02,
        "intermediate_size": EXPERT_WIDTH,
        "layer_types": ["sliding_attention" if is_sliding(i) else "full_attention" for i in range(LAYERS)],
        "max_position_embeddings": 131072,
        "num_attention_heads": HEADS,
        "num_experts_per_tok": ACTIVE,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "num_local_experts": EXPERTS,
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                                       "lm_head"],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": EPSILON,
        "rope_scaling": {"beta_fast": BETA_FAST, "beta_slow": BETA_SLOW, "factor": YARN_FACTOR,
                         "original_max_position_embeddings": ORIGINAL_POSITIONS, "rope_type": "yarn",
                         "truncate": False},
        "rope_theta": ROPE_THETA,
        "router_aux_loss_coef": 0.9,
        "sliding_window": WINDOW,
        "swiglu_limit": SWIGLU_LIMIT,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
    if plain:
        del values["quantization_config"]
        values["torch_dtype"] = "bfloat16"
    return values


def generation_config():
    return {"bos_token_id": special_id("<|startoftext|>"), "do_sample": True,
            "eos_token_id": [special_id("<|return|>"), special_id("<|endoftext|>")],
            "pad_token_id": special_id("<|endoftext|>")}


def tokenizer_config():
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {str(special_id(name)): {"content": name, **flags} for name in SPECIAL_TOKENS},
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
