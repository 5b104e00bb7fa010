"""What a reducer of visual tokens sees of an encoder while it runs, and what such a reducer is.

An encoder that is given `Taps` leaves in them the queries and keys of the layers that they ask for. Both exist anyway,
so that a graph without a reducer stays as it is, and one with a reducer computes only what the reducer makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

#: Called by an attention layer with its queries and keys.
Record: TypeAlias = "Callable[[Tensor, Tensor], None]"


class QueryKey(NamedTuple):
    """Queries and keys `[B, heads, T, D]` of one layer, the class token's first where there is one."""

    query: Tensor
    key: Tensor


class Taps:
    """Holds what an encoder shows of itself."""

    def __init__(self, layers: Collection[int]) -> None:
        """Ask for some attention layers, counted from the last, which is -1."""
        self.layers = frozenset(layers)
        self.found: dict[int, QueryKey] = {}
        #: The question `[1, P]` and the patches `[B, N, P]` in the space that both share, for reducers that read it.
        self.text: Tensor | None = None
        self.patches: Tensor | None = None
        #: The class token's output `[B, 1, C]`, where there is one.
        self.class_feature: Tensor | None = None

    def recorder(self, layer: int) -> Record | None:
        """What `layer` is to call, or None if nobody asks for it."""
        if layer not in self.layers:
            return None

        def record(query: Tensor, key: Tensor) -> None:
            self.found[layer] = QueryKey(query, key)

        return record


class TokenReducer(nn.Module):
    """Image embeddings `[B, N, C]` to fewer `[B, K, C]`, with K the same for every image.

    Called with the embeddings and the `Taps` that it asked for.

    Attributes:
        before_projector: it reduces what enters the projector, not what leaves it.
        layers: attention layers whose queries and keys it looks at, counted from the last, which is -1.
    """

    before_projector: bool = False
    layers: tuple[int, ...] = ()
