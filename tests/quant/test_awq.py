"""AWQ: factors that lessen the error of outputs, and folding them without changing what a layer computes."""

from dataclasses import replace

import pytest
import torch
from decoders import DECODERS, QWEN2
from linear_inputs import correlated, moments_of, normal, output_error
from onnx_models import make_decoder

from edgevlm.calibration.layers import linear_groups
from edgevlm.models.decoder import DecoderLayer, rotary_for
from edgevlm.quant import rtn
from edgevlm.quant.awq import channel_factors, clipped, moment_blocks
from edgevlm.quant.folding import fold, source_of
from edgevlm.quant.tensor import QuantScheme


def layer_of(kind: str) -> DecoderLayer:
    layer = make_decoder(DECODERS[kind]).layers[0]
    assert isinstance(layer, DecoderLayer)
    return layer


def test_factors_and_clipping_each_lessen_the_error_of_outputs() -> None:
    inputs, weight = correlated(500, 64), normal(48, 64)
    moments, scheme = moments_of(inputs), QuantScheme(3, 32)
    factors = channel_factors(weight, moments, scheme)
    nearest = torch.from_numpy(rtn.quantize(weight, scheme).dequantize())
    scaled = torch.from_numpy(rtn.quantize(weight * factors, scheme).dequantize()) / factors
    both = (
        torch.from_numpy(clipped(weight * factors, moments / factors / factors[:, None], scheme).dequantize()) / factors
    )
    errors = [output_error(inputs, weight, each) for each in (nearest, scaled, both)]
    assert errors[1] < 0.95 * errors[0]
    assert errors[2] < 0.95 * errors[1]


def test_equal_inputs_need_no_factors() -> None:
    assert torch.equal(channel_factors(normal(16, 32), torch.eye(32), QuantScheme(4, 32)), torch.ones(32))


def test_channels_of_one_owner_share_a_factor() -> None:
    owners = torch.arange(32) % 16
    factors = channel_factors(normal(16, 32), moments_of(correlated(300, 32)), QuantScheme(3, 16), owners)
    assert torch.equal(factors[:16], factors[16:])
    assert len(factors.unique()) > 8


def test_blocks_of_moments_are_those_on_the_diagonal() -> None:
    moments = moments_of(correlated(100, 40))
    blocks = moment_blocks(moments, 16)
    assert torch.equal(blocks[1], moments[16:32, 16:32])
    assert torch.equal(blocks[2, :8, :8], moments[32:, 32:])
    assert not blocks[2, 8:].any()


@pytest.mark.parametrize("kind", [*DECODERS, "mha"])
def test_a_folded_layer_computes_what_it_did(kind: str) -> None:
    spec = replace(QWEN2, num_key_value_heads=4) if kind == "mha" else DECODERS[kind]
    layer = make_decoder(spec).layers[0]
    assert isinstance(layer, DecoderLayer)
    states = normal(9, spec.hidden_size)[None]
    rotary = rotary_for(spec, torch.arange(9)[None])
    expected = layer(states, rotary, None, None)[0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    folded = set()
    for group in linear_groups(layer):
        source = source_of(layer, group)
        if source is None:
            continue
        folded.add(group[0])
        by_owner = torch.logspace(-1, 1, int(source.owners.max()) + 1)
        fold(layer, group, source, by_owner[source.owners])
    torch.testing.assert_close(layer(states, rotary, None, None)[0], expected, rtol=1e-4, atol=1e-5)
    assert folded == {group[0] for group in linear_groups(layer)} - {"mlp.fc2"}
    changed = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
    assert {f"{name}.weight" for group in linear_groups(layer) for name in group if group[0] in folded} <= changed


def test_the_layer_behind_a_nonlinearity_has_no_source() -> None:
    assert source_of(layer_of("phi2"), ("mlp.fc2",)) is None
