"""Fewer visual tokens, inside the exported vision graph: one method a file.

To add one, write a subclass of `Reducer` (or `Selector`) in a file of its own and put it into `REDUCERS`; its options,
refusals, listing and export follow. docs/pruning.md says how.
"""

from __future__ import annotations

from typing import Any

from edgevlm.pruning.tokens.attention import Attention
from edgevlm.pruning.tokens.divprune import DivPrune
from edgevlm.pruning.tokens.fastervlm import FasterVlm
from edgevlm.pruning.tokens.pool import Pool
from edgevlm.pruning.tokens.random_tokens import RandomTokens
from edgevlm.pruning.tokens.reducer import Reducer
from edgevlm.pruning.tokens.resolution import Resolution
from edgevlm.pruning.tokens.uniform import Uniform

#: In the order in which they are listed.
REDUCERS: dict[str, type[Reducer[Any]]] = {
    reducer.name: reducer for reducer in (Resolution, Uniform, RandomTokens, Pool, FasterVlm, Attention, DivPrune)
}
