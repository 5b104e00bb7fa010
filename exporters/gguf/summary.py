"""What a GGUF really holds: bits per weight and storage types, counted from the file, not from its label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gguf

#: Types that llama.cpp mixes on purpose; at q4_0 with an importance matrix, at iq4_nl without one.
_MIXES = {"q4_k_m": {"Q4_K", "Q6_K"}, "q4_0": {"Q4_0", "Q4_1"}, "iq4_nl": {"IQ4_NL", "Q5_K"}}


@dataclass(frozen=True)
class GgufSummary:
    """Counts over the tensors of one file.

    Attributes:
        parameters: weights, every tensor counted.
        bits_per_weight: weight payload in bits over `parameters`.
        matrices: number of matrices per storage type, e.g. `{"Q4_0": 169}`.
    """

    parameters: int
    bits_per_weight: float
    matrices: dict[str, int]

    def fallback(self, gguf_type: str) -> str:
        """One line where matrices are not stored in the type asked for, else empty.

        K-quants need widths that are multiples of 256: llama.cpp stores other Q4_K matrices as Q5_0, Q6_K as Q8_0.
        """
        wanted = _MIXES.get(gguf_type, {gguf_type.upper()})
        other = {kind: count for kind, count in sorted(self.matrices.items()) if kind not in wanted}
        if not other:
            return ""
        counts = ", ".join(f"{count} as {kind}" for kind, count in other.items())
        return (
            f"{gguf_type}: {sum(other.values())} of {sum(self.matrices.values())} matrices have widths that do not "
            f"allow it and are stored otherwise ({counts}): {self.bits_per_weight:.2f} bits per weight"
        )


def summarize(path: Path) -> GgufSummary:
    """Read the tensor table of a GGUF (its data stay on disk)."""
    tensors = gguf.GGUFReader(path).tensors
    parameters = sum(int(tensor.n_elements) for tensor in tensors)
    payload = sum(int(tensor.n_bytes) for tensor in tensors)
    matrices = Counter(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1)
    return GgufSummary(parameters, 8 * payload / max(parameters, 1), dict(matrices))
