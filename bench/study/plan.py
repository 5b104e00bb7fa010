"""The grid of a study of visual tokens: which method keeps how many, and which cannot.

In: what the user wrote and the model's spec. Out: cells, each with the pass that makes it or the reason why there is
none. Nothing is computed with weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgevlm.errors import InputError
from edgevlm.pipeline.passes import parse_passes
from edgevlm.pruning.tokens import CHOOSERS, REDUCERS
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.spec import ModelSpec

#: The pass that a value of `edgevlm export --prune-tokens` stands for.
ReadFlag: TypeAlias = Callable[[str], PassEntry]
ALL = "all"


@dataclass(frozen=True)
class Method:
    """A method and the options that were given for it."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """As it is written in `--methods`."""
        return ":".join([self.name, *(f"{option}={value}" for option, value in self.options)])

    @property
    def chooses(self) -> bool:
        """Whether it chooses how many tokens to keep."""
        return self.name in CHOOSERS

    def flag(self, tokens: int) -> str:
        """The value of `--prune-tokens` that keeps so many tokens, or as many as the method chooses."""
        head = self.name if self.chooses else f"{self.name}:{tokens}"
        return ",".join([head, *(f"{option}={value}" for option, value in self.options)])


@dataclass(frozen=True)
class Cell:
    """One method at one count.

    Attributes:
        method: of the grid.
        percents: what was asked for and became this count; none for a method that chooses.
        tokens: to keep of an image or tile; all, where the method has yet to choose.
        reason: why it cannot be made; empty if it can.
    """

    method: Method
    percents: tuple[float, ...]
    tokens: int
    reason: str = ""

    @property
    def name(self) -> str:
        """Unique in the study."""
        return self.method.label if self.method.chooses else f"{self.method.label} {self.tokens}"

    @property
    def flag(self) -> str:
        """The value of `--prune-tokens` that makes it."""
        return self.method.flag(self.tokens)


def parse_methods(text: str) -> tuple[Method, ...]:
    """`fastervlm,random:seed=1`, or `all`, as methods; each once.

    Raises:
        InputError: a method is not written like this.
    """
    if text.strip() == ALL:
        return tuple(Method(name) for name in (*REDUCERS, *CHOOSERS))
    found = []
    for part in text.split(","):
        name, *pairs = part.strip().split(":")
        options = tuple((option, value) for option, _, value in (pair.partition("=") for pair in pairs))
        if not name or not all(option and value for option, value in options):
            raise InputError(
                f"{part.strip()!r} is not a method",
                "--methods",
                "write METHOD or METHOD:OPTION=VALUE, with commas between",
            )
        found.append(Method(name, options))
    return tuple(dict.fromkeys(found))


def parse_percents(text: str) -> tuple[float, ...]:
    """`50,25` as percentages, largest first; 100 is the unpruned model, which is always measured.

    Raises:
        InputError: one is not a number above 0 and at most 100.
    """
    found = set()
    for part in text.split(","):
        try:
            percent = float(part)
        except ValueError:
            percent = 0.0
        if not 0 < percent <= 100:
            raise InputError(f"{part.strip()!r} is not a percentage", "--keep", "write numbers above 0, at most 100")
        found.add(percent)
    return tuple(sorted(found, reverse=True))


def check_methods(methods: Sequence[Method], recipe: Recipe, read_flag: ReadFlag) -> None:
    """Refuse a method or an option that does not exist.

    Raises:
        InputError: there is one.
    """
    for method in methods:
        parse_passes(with_pass(recipe, read_flag(method.flag(1))))


def plan_cells(
    spec: ModelSpec, methods: Sequence[Method], percents: Sequence[float], recipe: Recipe, read_flag: ReadFlag
) -> list[Cell]:
    """The cells by method, most tokens first; shares that become one count share a cell.

    A method that chooses its count has one cell whatever the shares. Where another one refuses a count but can make
    others, it gets the nearest of them, the smaller of two.
    """
    full = spec.vision.image_tokens
    cells: dict[tuple[Method, int], Cell] = {}
    for method in methods:
        reasons = _Reasons(method, spec, recipe, read_flag)
        if method.chooses:
            cells[method, full] = Cell(method, (), full, reasons.of(full))
            continue
        for percent in percents:
            wanted = max(1, round(full * percent / 100))
            if wanted >= full:
                continue
            nearest = sorted(range(1, full), key=lambda count: (abs(count - wanted), count))
            tokens = next((count for count in nearest if not reasons.of(count)), wanted)
            known = cells.get((method, tokens))
            asked = (*known.percents, percent) if known else (percent,)
            cells[method, tokens] = Cell(method, asked, tokens, reasons.of(tokens))
    return list(cells.values())


class _Reasons:
    """Why a method cannot keep a count; asked of the pass once each."""

    def __init__(self, method: Method, spec: ModelSpec, recipe: Recipe, read_flag: ReadFlag) -> None:
        self._method, self._spec, self._recipe, self._read_flag = method, spec, recipe, read_flag
        self._known: dict[int, str] = {}

    def of(self, tokens: int) -> str:
        if tokens not in self._known:
            (step,) = parse_passes(with_pass(self._recipe, self._read_flag(self._method.flag(tokens))))
            self._known[tokens] = step.applies_to(self._spec) or self._without_images(step.needs_calibration)
        return self._known[tokens]

    def _without_images(self, needed: bool) -> str:
        return "it needs calibration images: give --calibrate" if needed and self._recipe.calibration is None else ""


def with_pass(recipe: Recipe, entry: PassEntry) -> Recipe:
    """The recipe with one pass, and without calibration data unless the pass needs them."""
    made = recipe.model_copy(update={"passes": (entry,)})
    (step,) = parse_passes(made)
    return made if step.needs_calibration else made.model_copy(update={"calibration": None})
