"""The autoregressive baseline against another library: Hugging Face's Starcoder2 with copied weights.

Of its models that one has our layer: pre-norm, rotary positions, an MLP of two matrices, no biases. Its norm is
LayerNorm; for RMSNorm, Llama's is put in.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from armd import Autoregressive, Order
from conftest import make_model


@pytest.fixture(scope="module")
def starcoder() -> type:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra bench)")
    return transformers.Starcoder2ForCausalLM


def copied(kind: type, model: Autoregressive) -> nn.Module:
    """The other library's model with the weights of ours; its last token is BOS."""
    from transformers import Starcoder2Config
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    c = model.config
    other = kind(
        Starcoder2Config(
            vocab_size=c.vocab_size + 1, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
            intermediate_size=4 * c.hidden_size, num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_attention_heads, max_position_embeddings=c.max_position_embeddings,
            hidden_act="gelu", norm_epsilon=1e-5, use_bias=False, sliding_window=None, tie_word_embeddings=False,
            bos_token_id=c.vocab_size, eos_token_id=None, pad_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    ).eval()  # fmt: skip
    if c.norm == "rmsnorm":
        for layer in other.model.layers:
            layer.input_layernorm = LlamaRMSNorm(c.hidden_size, eps=1e-6)
            layer.post_attention_layernorm = LlamaRMSNorm(c.hidden_size, eps=1e-6)
        other.model.norm = LlamaRMSNorm(c.hidden_size, eps=1e-6)

    def copy(name: str, weight: Tensor) -> dict[str, Tensor]:
        key, _, last = name.rpartition(".")
        if "key_value" in key:
            k, v = weight.chunk(2)
            return {name.replace("key_value", "self_attn.k_proj"): k, name.replace("key_value", "self_attn.v_proj"): v}
        for ours, theirs in {
            "query": "self_attn.q_proj", "attention_out": "self_attn.o_proj", "attention_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm", "up": "mlp.c_fc", "down": "mlp.c_proj",
        }.items():  # fmt: skip
            if key.endswith("." + ours):
                return {key[: -len(ours)] + theirs + "." + last: weight}
        return {name: weight}  # the last norm

    weights = {"model.embed_tokens.weight": torch.cat((model.embed.weight, model.bos[None]))}
    weights["lm_head.weight"] = torch.cat((model.head_weight, torch.zeros(1, c.hidden_size)))
    for name, weight in model.state_dict().items():
        if name.startswith(("layers.", "norm.")):
            weights |= {"model." + key: value for key, value in copy(name, weight).items()}
    other.load_state_dict(weights)  # every weight, and no other
    return other


@torch.no_grad()
@pytest.mark.parametrize("changes", [
    {"norm": "layernorm"}, {"norm": "rmsnorm"}, {"norm": "layernorm", "tie_word_embeddings": False},
    {"norm": "rmsnorm", "rope_theta": 500.0, "num_attention_heads": 4},
])  # fmt: skip
def test_autoregressive_equals_hugging_face(changes: dict[str, object], starcoder: type) -> None:
    model = make_model(Autoregressive, **changes)
    other = copied(starcoder, model)
    tokens = torch.randint(0, 11, (2, 20), generator=torch.Generator().manual_seed(0))
    ours = model(tokens, Order.left_to_right(2, 20))
    theirs = other(torch.cat((torch.full((2, 1), 11), tokens[:, :-1]), dim=1)).logits[..., :11]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert ours.std() > 0.1  # the weights say something
