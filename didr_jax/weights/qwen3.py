"""Names of the tensors of Qwen3Model and Qwen3ForCausalLM, written as the former."""

from didr_jax.models.qwen3 import Qwen3Config
from didr_jax.weights.rules import Rule, embedding, ignore, layer, norm


def qwen3_table(config: Qwen3Config, hidden_state: int = -2) -> list[Rule]:
    """`weights.rules`; what `Qwen3(hidden_state=…)` does not use is passed over on reading."""
    layers = config.num_hidden_layers
    used = layers + 1 + hidden_state
    rules = [*ignore("lm_head.weight")]
    for prefix in ("", "model."):
        rules += [row for i in range(used, layers) for row in ignore(f"{prefix}layers.{i}.(.*)")]
        rules += norm(f"{prefix}norm", "norm") if hidden_state == -1 else ignore(f"{prefix}norm.weight")
        block = f"{prefix}layers.(?P<layer>\\d+)"
        rules += [
            *embedding(f"{prefix}embed_tokens", "embed_tokens"),
            *layer(f"{block}.self_attn.(q_proj|k_proj|v_proj|o_proj)", "layers/self_attn/{}"),
            *norm(f"{block}.self_attn.(q_norm|k_norm)", "layers/self_attn/{}"),
            *layer(f"{block}.mlp.(gate_proj|up_proj|down_proj)", "layers/mlp/{}"),
            *norm(f"{block}.(input_layernorm|post_attention_layernorm)", "layers/{}"),
        ]
    return rules
