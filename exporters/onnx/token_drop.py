"""The choice of image tokens between two decoder layers, as nodes of the decoder graph.

In: what the layer before a stage computed. Out: the places `[kept]` that go on, ascending, as
`edgevlm.models.token_drop` defines them. The nodes stand in an `If` on whether the run has images at all, so that a
decode step skips them. They read the keys of the cache through its present value, up to the sequence's length, since a
buffer may be longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgevlm.exporters.onnx.graph import BOOL, CONTRIB, INT64, Graph
from edgevlm.models.token_drop import shares
from edgevlm.spec import DecoderSpec, TokenDropSpec

_INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Seen:
    """What one layer leaves to choose by.

    Attributes:
        layer: its index.
        projections: queries, keys and values `[B, S, C]` before the rotation, side by side in one or apart.
        states: behind the layer `[B, S, H]`.
        norm: adds the decoder's last norm of such states.
    """

    layer: int
    projections: tuple[str, ...]
    states: str
    norm: Callable[[str], str]


def part_suffix(part: int) -> str:
    """What ends the names that belong to the layers behind so many stages."""
    return f".{part}" if part else ""


def declare_images(graph: Graph) -> None:
    """The input that says where, among the positions of a run, images begin: `[M]`, ascending; none in most runs."""
    graph.input("image_starts", INT64, ["num_images"])
    graph.op("Size", ["image_starts"], "images.count")
    graph.op("Greater", ["images.count", graph.constant("zero", np.array(0))], "images.any")


def kept_places(graph: Graph, spec: DecoderSpec, drop: TokenDropSpec, stage: int, seen: Seen) -> str:
    """The places `[kept]` of `[B, S, H]` that go on behind a stage."""
    choice = _Choice(graph, spec, drop, stage, seen)
    return graph.choose("images.any", f"kept_positions.{stage + 1}", INT64, choice.of_images, choice.all)


class _Choice:
    """The nodes of one stage."""

    def __init__(self, graph: Graph, spec: DecoderSpec, drop: TokenDropSpec, stage: int, seen: Seen) -> None:
        self.graph, self.spec, self.drop, self.stage, self.seen = graph, spec, drop, stage, seen
        self.tokens, self.keep = drop.entering(stage), drop.stages[stage].keep
        self.name = f"drop.{stage + 1}"
        self.suffix = part_suffix(stage)

    def all(self) -> str:
        """Every place, in a run without images."""
        graph = self.graph
        length = graph.op("Shape", [self.seen.states], f"{self.name}.all_length", start=1, end=2)
        scalar = graph.op("Squeeze", [length, graph.integers(0)], f"{self.name}.all_scalar")
        zero, one = graph.constant("zero", np.array(0)), graph.constant("one", np.array(1))
        return graph.op("Range", [zero, scalar, one], f"{self.name}.all")

    def of_images(self) -> str:
        """Every place of text, and the chosen ones of images."""
        graph, name = self.graph, self.name
        length = graph.op("Shape", [self.seen.states], f"{name}.length", start=1, end=2)
        images = self._images()
        score = self._most_attended if self.drop.score == "attention" else self._least_duplicate
        taken = score(images, length)
        every = graph.op("Expand", [graph.integers(1), length], f"{name}.every")
        flat = graph.op("Reshape", [images, graph.integers(-1)], f"{name}.images_flat")
        flags = graph.op("Reshape", [taken, graph.integers(-1)], f"{name}.taken_flat")
        places = graph.op("ScatterElements", [every, flat, flags], f"{name}.flags", axis=0)
        found = graph.op("NonZero", [places], f"{name}.found")
        return graph.op("Reshape", [found, graph.integers(-1)], f"{name}.places")

    def _images(self) -> str:
        """Places `[M, N]` of the images' tokens in front of this stage: earlier stages moved them to the front."""
        graph, name, starts = self.graph, self.name, "image_starts"
        if gone := self.drop.image_tokens - self.tokens:
            zero, one = graph.constant("zero", np.array(0)), graph.constant("one", np.array(1))
            numbers = graph.op("Range", [zero, "images.count", one], f"{name}.numbers")
            moved = graph.op("Mul", [numbers, graph.integers(gone)], f"{name}.moved")
            starts = graph.op("Sub", [starts, moved], f"{name}.starts")
        column = graph.op("Unsqueeze", [starts, graph.integers(1)], f"{name}.column")
        offsets = graph.constant(f"{name}.offsets", np.arange(self.tokens, dtype=np.int64)[None])
        return graph.op("Add", [column, offsets], f"{name}.images")

    def _most_attended(self, images: str, length: str) -> str:
        """Flags `[M, N]` of the tokens that the last one attends to most."""
        graph, name = self.graph, self.name
        past = graph.op("Sub", [f"mask.total{self.suffix}", length], f"{name}.past")
        places = graph.op("Add", [images, past], f"{name}.cache_places")
        scores = graph.op("Gather", [self._last_attention(), places], f"{name}.scores", axis=0)
        return self._flags(images, self._top(scores, self.keep, f"{name}.top"), f"{name}.taken")

    def _last_attention(self) -> str:
        """Attention `[T]` of the last token, mean over heads."""
        graph, spec, name = self.graph, self.spec, self.name
        last = graph.op(
            "Slice",
            [self._projection(0), graph.integers(-1), graph.integers(_INT64_MAX), graph.integers(1)],
            f"{name}.last",
        )
        tables = []
        for table in ("cos", "sin"):
            row = graph.op("Gather", [f"rotary.{table}", f"seqlens_k{self.suffix}"], f"{name}.{table}_row", axis=0)
            tables.append(graph.op("Unsqueeze", [row, graph.integers(1)], f"{name}.{table}"))
        rotated = graph.op(
            "RotaryEmbedding",
            [last, *tables],
            f"{name}.rotated",
            num_heads=spec.num_attention_heads,
            rotary_embedding_dim=spec.rotary_dim,
        )
        heads = graph.integers(1, spec.num_key_value_heads, -1, spec.head_dim)
        query = graph.op("Reshape", [rotated, heads], f"{name}.query")
        buffer = f"present.{self.seen.layer}.key"
        ends = [graph.integers(0), f"mask.total{self.suffix}", graph.integers(2)]
        keys = graph.op("Slice", [buffer, *ends], f"{name}.keys")
        scaled = {"transB": 1, "alpha": spec.head_dim**-0.5}
        logits = graph.op("FusedMatMul", [query, keys], f"{name}.logits", domain=CONTRIB, **scaled)
        weights = graph.op("Softmax", [logits], f"{name}.weights", axis=-1)
        return graph.op("ReduceMean", [weights, graph.integers(0, 1, 2)], f"{name}.attention", keepdims=0)

    def _least_duplicate(self, images: str, length: str) -> str:
        """Flags `[M, N]` of the image's pivots and of what is least like any pivot."""
        graph, name, drop = self.graph, self.name, self.drop
        sizes = graph.op("ReduceL1", [self._projection(1), graph.integers(0, 2)], f"{name}.sizes", keepdims=0)
        own_sizes = graph.op("Gather", [sizes, images], f"{name}.own_sizes", axis=0)
        own = self._top(own_sizes, drop.image_pivots, f"{name}.own")
        own_places = graph.op("GatherElements", [images, own], f"{name}.own_places", axis=1)
        other = self._top(self._text_sizes(images, length, sizes), drop.text_pivots, f"{name}.other")
        pivots = graph.op("Concat", [own_places, other], f"{name}.pivots", axis=1)
        normed = self.seen.norm(self.seen.states)
        rows = graph.op("Squeeze", [normed, graph.integers(0)], f"{name}.rows")
        units = graph.op("LpNormalization", [rows], f"{name}.units", axis=-1, p=2)
        chosen = graph.op("Gather", [units, pivots], f"{name}.pivot_units", axis=0)
        tokens = graph.op("Gather", [units, images], f"{name}.image_units", axis=0)
        similar = graph.op("FusedMatMul", [chosen, tokens], f"{name}.similar", domain=CONTRIB, transB=1)
        taken = self._flags(images, own, f"{name}.taken")
        far = graph.constant("infinity", np.array(np.inf, np.float32))
        for pivot, share in enumerate(shares(drop, self.keep)):
            if not share:
                break
            path = f"{name}.pivot_{pivot}"
            row = graph.op("Gather", [similar, graph.constant(f"place.{pivot}", np.array(pivot))], path, axis=1)
            known = graph.op("Cast", [taken], f"{path}.known", to=BOOL)
            free = graph.op("Where", [known, far, row], f"{path}.free")
            found = self._top(free, share, f"{path}.found", largest=0)
            taken = self._flags(images, found, f"{path}.taken", onto=taken)
        return taken

    def _text_sizes(self, images: str, length: str, sizes: str) -> str:
        """Norms `[M, S]` of the keys of text behind each image; -1 for other places from the image on, -2 before it."""
        graph, name = self.graph, self.name
        every = graph.op("Expand", [graph.integers(1), length], f"{name}.text_every")
        flat = graph.op("Reshape", [images, graph.integers(-1)], f"{name}.text_images")
        shape = graph.op("Shape", [flat], f"{name}.text_count")
        none = graph.op("ConstantOfShape", [shape], f"{name}.text_none", value=graph.filling(0))
        flags = graph.op("ScatterElements", [every, flat, none], f"{name}.text_flags", axis=0)
        text = graph.op("Cast", [flags], f"{name}.text", to=BOOL)
        zero, one = graph.constant("zero", np.array(0)), graph.constant("one", np.array(1))
        scalar = graph.op("Squeeze", [length, graph.integers(0)], f"{name}.text_length")
        places = graph.op("Range", [zero, scalar, one], f"{name}.text_places")
        column = {"first": (0, 1), "last": (-1, _INT64_MAX)}
        edges = {
            edge: graph.op("Slice", [images, *map(graph.integers, (*cut, 1))], f"{name}.image_{edge}")
            for edge, cut in column.items()
        }
        later = graph.op("Greater", [places, edges["last"]], f"{name}.text_later")
        behind = graph.op("And", [text, later], f"{name}.text_behind")
        begun = graph.op("GreaterOrEqual", [places, edges["first"]], f"{name}.text_begun")
        low = [graph.constant(f"minus.{value}", np.array(-value, np.float32)) for value in (1, 2)]
        instead = graph.op("Where", [begun, *low], f"{name}.text_instead")
        return graph.op("Where", [behind, sizes, instead], f"{name}.text_sizes")

    def _projection(self, which: int) -> str:
        """Queries (0) or keys (1) `[B, S, heads * D]` before the rotation."""
        graph, spec, given = self.graph, self.spec, self.seen.projections
        if len(given) > 1:
            return given[which]
        begin, end = ((0, spec.query_size), (spec.query_size, spec.query_size + spec.key_value_size))[which]
        cut = [graph.integers(begin), graph.integers(end), graph.integers(2)]
        return graph.op("Slice", [given[0], *cut], f"{self.name}.projection_{which}")

    def _top(self, scores: str, count: int, name: str, largest: int = 1) -> str:
        """Indexes `[M, count]` of the highest (or lowest) scores in each row; of equal ones the first."""
        graph = self.graph
        graph.ops("TopK", [scores, graph.integers(count)], [f"{name}.scores", name], axis=-1, largest=largest)
        return name

    def _flags(self, images: str, chosen: str, name: str, onto: str = "") -> str:
        """`onto`, or zeros, `[M, N]` with ones at the indexes `[M, k]`."""
        graph = self.graph
        if not onto:
            shape = graph.op("Shape", [images], f"{name}.shape")
            onto = graph.op("ConstantOfShape", [shape], f"{name}.zeros", value=graph.filling(0))
        count = graph.op("Shape", [chosen], f"{name}.count")
        ones = graph.op("ConstantOfShape", [count], f"{name}.ones", value=graph.filling(1))
        return graph.op("ScatterElements", [onto, chosen, ones], name, axis=1)
