"""Weight names of `Qwen3Model` and `Qwen3ForCausalLM` (transformers), both ways; written as the former."""

from didr_jax.weights.engine import Rule, embedding, ignore, layer, norm


def table(num_hidden_layers: int, hidden_state: int = -2) -> list[Rule]:
    """The rules for `models.qwen3.Qwen3(hidden_state=…)`: what that does not use is passed over on reading."""
    used = num_hidden_layers + 1 + hidden_state
    rules = [*ignore("lm_head.weight")]
    for prefix in ("", "model."):
        rules += [row for i in range(used, num_hidden_layers) for row in ignore(f"{prefix}layers.{i}.(.*)")]
        rules += [] if hidden_state == -1 else ignore(f"{prefix}norm.weight")
        block = f"{prefix}layers.(?P<layer>\\d+)"
        rules += [
            *embedding(f"{prefix}embed_tokens", "embed_tokens"),
            *layer(f"{block}.self_attn.(q_proj|k_proj|v_proj|o_proj)", "layers/self_attn/{}"),
            *norm(f"{block}.self_attn.(q_norm|k_norm)", "layers/self_attn/{}"),
            *layer(f"{block}.mlp.(gate_proj|up_proj|down_proj)", "layers/mlp/{}"),
            *norm(f"{block}.(input_layernorm|post_attention_layernorm)", "layers/{}"),
            *norm(f"{prefix}norm", "norm"),
        ]
    return rules
