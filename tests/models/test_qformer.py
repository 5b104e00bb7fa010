"""The Q-Former against transformers' Blip2QFormerModel on random weights."""

from dataclasses import replace

import torch
from torch.nn import functional as F
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from edgevlm.models.qformer import QFormerProjector
from edgevlm.spec import QFormerSpec, VisionSpec, VitSpec

SPEC = QFormerSpec(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_queries=5)
FEATURES, WIDTH = 48, 40


def hf_name(name: str) -> str:
    """Our name of a Q-Former tensor as transformers'."""
    for ours, theirs in (
        ("query_norm", "layernorm"),
        ("layers.", "encoder.layer."),
        ("self_attention.norm", "attention.output.LayerNorm"),
        ("self_attention.out_proj", "attention.output.dense"),
        ("self_attention", "attention.attention"),
        ("cross_attention.norm", "crossattention.output.LayerNorm"),
        ("cross_attention.out_proj", "crossattention.output.dense"),
        ("cross_attention", "crossattention.attention"),
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        (".fc1", ".intermediate_query.dense"),
        (".fc2", ".output_query.dense"),
        (".norm", ".output_query.LayerNorm"),
    ):
        name = name.replace(ours, theirs)
    return name


@torch.no_grad()
def test_queries_equal_transformers() -> None:
    torch.manual_seed(0)
    config = Blip2QFormerConfig(
        hidden_size=SPEC.hidden_size,
        intermediate_size=SPEC.intermediate_size,
        num_hidden_layers=SPEC.num_hidden_layers,
        num_attention_heads=SPEC.num_attention_heads,
        encoder_hidden_size=FEATURES,
        cross_attention_frequency=SPEC.cross_attention_every,
    )
    reference = Blip2QFormerModel(config).eval()
    ours = QFormerProjector(SPEC, FEATURES, WIDTH).eval()
    for parameter in [*reference.parameters(), *ours.parameters()]:
        parameter.copy_(torch.randn(parameter.shape) * (0.15 if parameter.ndim > 1 else 0.3) + (parameter.ndim == 1))
    state = reference.state_dict()
    for name, parameter in ours.named_parameters():
        if name.startswith(("query_norm", "layers")):
            parameter.copy_(state.pop(hf_name(name)))
    assert not state, "every tensor of the reference has a place"
    features = torch.randn(2, 17, FEATURES)
    normed = F.layer_norm(features, (FEATURES,), ours.feature_norm.weight, ours.feature_norm.bias, 1e-5)
    queries = ours.queries.expand(2, -1, -1)
    hidden = reference(query_embeds=queries, encoder_hidden_states=normed).last_hidden_state
    expected = F.linear(hidden, ours.linear.weight, ours.linear.bias)
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(features), expected, atol=1e-4, rtol=1e-4)


def test_the_number_of_tokens_is_that_of_the_queries_at_any_resolution() -> None:
    encoder = VitSpec(FEATURES, 64, 1, 4, patch_size=14, grid=2, norm_eps=1e-6)
    vision = VisionSpec(encoder, SPEC, image_size=28, image_tokens=5)
    assert vision.tokens_at(448) == 5
    assert replace(vision, projector=replace(SPEC, num_queries=32)).tokens_at(448) == 32
