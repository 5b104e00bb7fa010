"""Round-to-nearest against the quantizer inside ONNX Runtime, and at the edges."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgevlm.exporters.onnx.packing import pack_codes, pack_zero_points
from edgevlm.quant import rtn
from edgevlm.quant.tensor import QuantScheme


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def halves(packed: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1).astype(np.int16)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "block"), [(256, 128), (96, 32), (200, 64)])
def test_four_bits_equal_onnxruntimes_own_quantizer(symmetric: bool, columns: int, block: int) -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    matrix = weight(24, columns)
    blocks = -(-columns // block)
    codes = np.zeros((24, blocks, block // 2), np.uint8)
    scales = np.zeros((24, blocks), np.float32)
    zeros = np.zeros((24, (blocks + 1) // 2), np.uint8)
    transposed = np.ascontiguousarray(matrix.numpy().T)
    quantize_matmul_4bits(codes, transposed, scales, zeros, block, 24, columns, symmetric)

    ours = rtn.quantize(matrix, QuantScheme(4, block, symmetric))
    np.testing.assert_allclose(ours.scales, scales, rtol=1e-6)
    # What fills the last block does not matter: the kernel multiplies it by zeros.
    differing = (halves(pack_codes(ours)) - halves(codes)).reshape(24, -1)[:, :columns]
    assert np.abs(differing).max() <= 1
    assert (differing != 0).mean() < 0.002  # values halfway between two codes
    if not symmetric:
        theirs = halves(zeros)[:, :blocks]
        packed = pack_zero_points(ours)
        assert packed is not None
        assert np.array_equal(halves(packed)[:, :blocks], theirs)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [128, 100, 31])
def test_error_is_within_the_step(bits: int, symmetric: bool, columns: int) -> None:
    matrix = weight(16, columns)
    result = rtn.quantize(matrix, QuantScheme(bits, 32, symmetric))  # type: ignore[arg-type]
    steps = np.repeat(np.abs(result.scales), 32, axis=1)[:, :columns]
    # The symmetric grid lacks the mirror image of its end: a value there may be a whole step away.
    allowed = steps * (1.0 if symmetric else 0.5) + 1e-6
    assert (np.abs(result.dequantize() - matrix.numpy()) <= allowed).all()


def test_largest_magnitude_is_exact() -> None:
    matrix = weight(16, 64)
    restored = rtn.quantize(matrix, QuantScheme(4, 64)).dequantize()
    rows, largest = np.arange(16), matrix.abs().argmax(dim=1).numpy()
    np.testing.assert_allclose(restored[rows, largest], matrix.numpy()[rows, largest], rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zero(symmetric: bool) -> None:
    matrix = weight(4, 64)
    matrix[1] = 0
    matrix[2, 32:] = 0
    result = rtn.quantize(matrix, QuantScheme(4, 32, symmetric))
    restored = result.dequantize()
    assert not restored[1].any()
    assert not restored[2, 32:].any()
    assert np.isfinite(result.scales).all()


def test_short_last_group_is_scaled_by_its_own_values() -> None:
    matrix = torch.cat([weight(4, 32) * 100, weight(4, 8)], dim=1)
    restored = rtn.quantize(matrix, QuantScheme(8, 32)).dequantize()
    assert np.abs(restored[:, 32:] - matrix.numpy()[:, 32:]).max() < 0.01


def test_pieces_of_a_large_matrix_join(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rtn.quantize(weight(50, 64), QuantScheme(4, 32, symmetric=False))
    monkeypatch.setattr(rtn, "_ELEMENTS_AT_ONCE", 64 * 7)
    pieces = rtn.quantize(weight(50, 64), QuantScheme(4, 32, symmetric=False))
    assert np.array_equal(whole.codes, pieces.codes)
    assert np.array_equal(whole.scales, pieces.scales)


def test_bfloat16_is_read_exactly() -> None:
    matrix = weight(8, 64).bfloat16()
    direct, widened = (rtn.quantize(m, QuantScheme(4, 32)) for m in (matrix, matrix.float()))
    assert np.array_equal(direct.codes, widened.codes)


def test_not_a_number_is_refused() -> None:
    matrix = weight(4, 64)
    matrix[3, 5] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        rtn.quantize(matrix, QuantScheme(4, 32))
