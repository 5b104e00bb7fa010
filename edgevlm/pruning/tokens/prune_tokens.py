"""The pass `prune_tokens`: put a reducer of visual tokens into the vision side, or a drop of them into the decoder.

In: a method with its K, or a chooser and calibration images. Out: the model with the method; after a choice, also what
a recipe says to get the same again.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import InputError
from edgevlm.models.rebuild import with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.pruning.tokens import CHOOSERS, REDUCERS
from edgevlm.pruning.tokens.attention_scores import has_class_token
from edgevlm.pruning.tokens.chooser import Choice, Chooser
from edgevlm.pruning.tokens.reducer import Method, Options, Ranking
from edgevlm.recipe import PassEntry
from edgevlm.spec import LdpSpec, ModelSpec, QFormerSpec, RowsLayout, VitSpec
from edgevlm.validation import first_problem


class PruneTokensConfig(BaseModel):
    """What a recipe says about it.

    Attributes:
        method: a name of `REDUCERS`, or of `CHOOSERS`.
        keep: tokens to keep of an image, or of each of its tiles; None with a chooser.
        options: the method's own.
        chosen: why these, where a chooser wrote them; a note in the bundle.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    keep: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = {}
    chosen: str = Field(default="", max_length=2000)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A method with all that it needs, as written or as chosen."""

    method: type[Method[Any]]
    keep: int
    options: Options

    def applies_to(self, spec: ModelSpec) -> str | None:
        return _refusal(self.method, spec, self.keep) or self.method.refuses(spec, self.keep, self.options)


class PruneTokens(Pass[PruneTokensConfig]):
    """Fewer image embeddings leave the vision graph, or go through the decoder."""

    name = "prune_tokens"
    stage = Stage.TOKENS
    Config = PruneTokensConfig

    def __init__(self, config: PruneTokensConfig, seed: int) -> None:
        super().__init__(config, seed)
        found = _find(config.method)
        self._choice: Choice | None = None
        self._chooser: type[Chooser[Any]] | None = None
        self._chosen: _Chosen | None = None
        self._options = _options(found, config.options, seed)
        if issubclass(found, Chooser):
            self._chooser, self.needs_calibration = found, True
            if config.keep is not None:
                raise InputError(
                    f"{found.name} chooses how many tokens to keep, so that {config.keep} cannot be given",
                    "prune_tokens field 'keep'",
                    "leave it out, or take another method of edgevlm pruners",
                )
        elif config.keep is None:
            raise InputError(
                f"prune_tokens field 'keep': {found.name} does not say how many tokens to keep",
                "prune_tokens",
                f"write {found.name}:K; edgevlm pruners lists methods that choose K",
            )
        else:
            self._chosen = _Chosen(found, config.keep, self._options)

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        if self._chooser is None:
            return self._method(spec).applies_to(spec)
        inside = self._chooser.inside_decoder
        alone = _common_refusal(spec, inside_decoder=inside, ranks=not inside)
        return alone or self._chooser.refuses(spec, self._options) or self._method(spec).applies_to(spec)

    def planned(self, spec: ModelSpec) -> ModelSpec:
        """The spec after the pass; where K is chosen, with some K."""
        chosen = self._method(spec)
        return chosen.method.planned(spec, chosen.keep, chosen.options)

    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model after the pass.

        Raises:
            InputError: the calibration samples allow no choice.
        """
        reason = self.config.chosen
        if self._chooser is not None:
            self._choice = self._chooser.choose(model, context, self._options)
            self._chosen, reason = self._of(self._choice), self._choice.reason
            context.progress(1, 1, reason)
        chosen = self._method(model.spec)
        reduced = chosen.method.reduced(model, chosen.keep, chosen.options)
        return with_note(reduced, reason) if reason else reduced

    def settled(self) -> PassEntry | None:
        """The chosen method with its K, for a recipe."""
        if self._choice is None:
            return None
        made = self._choice
        fields = {"method": made.method, "keep": made.keep, "options": dict(made.options), "chosen": made.reason}
        return PassEntry.model_validate({"name": self.name, **fields})

    def _method(self, spec: ModelSpec) -> _Chosen:
        """What was written or chosen; before the choice, what might be."""
        if self._chosen is not None:
            return self._chosen
        assert self._chooser is not None
        return self._of(self._chooser.supposed(spec, self._options))

    def _of(self, choice: Choice) -> _Chosen:
        method = REDUCERS[choice.method]
        return _Chosen(method, choice.keep, _options(method, dict(choice.options), self.seed))


def _find(name: str) -> type[Method[Any]] | type[Chooser[Any]]:
    known: dict[str, type[Method[Any]] | type[Chooser[Any]]] = {**REDUCERS, **CHOOSERS}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    guess = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"there is no token reducer {name!r}", "prune_tokens", f"{guess}edgevlm pruners lists all")


def _options(reducer: type[Method[Any]] | type[Chooser[Any]], given: dict[str, Any], seed: int) -> Options:
    """The method's options; a seed that was not given is the recipe's."""
    known = reducer.Options.model_fields
    try:
        return reducer.Options.model_validate({"seed": seed, **given} if "seed" in known else given)
    except ValidationError as error:
        option, problem = first_problem(error)
        raise InputError(
            f"{reducer.name} option {option!r}: {problem}",
            "prune_tokens",
            f"options of {reducer.name}: {', '.join(known) or 'none'}",
        ) from error


def _common_refusal(spec: ModelSpec, *, inside_decoder: bool, ranks: bool = False) -> str | None:
    """Why a model can take no method of a kind."""
    vision = spec.vision
    encoder, projector = vision.encoder, vision.projector
    if vision.reducer is not None:
        return f"{vision.reducer.name} has reduced its image tokens already"
    if spec.fusion is not None:
        return f"its fusion leaves {spec.fusion.image_tokens} token of an image already, so nothing would be gained"
    if isinstance(projector, QFormerSpec):
        return f"its Q-Former makes {projector.num_queries} tokens of an image already, so nothing would be gained"
    if spec.preprocess.patches is not None:
        return "its images keep their shape, so that the number of their tokens is not fixed"
    if spec.decoder.token_drop is not None:
        return f"{spec.decoder.token_drop.name} drops its image tokens already"
    if isinstance(spec.prompt.image_layout, RowsLayout) and not ranks:
        if inside_decoder:
            return "it joins the tokens of all tiles to one map, so that the number of an image's tokens is not fixed"
        return "it joins the tokens of all tiles to one map; use a method that scores each token, as attention does"
    if isinstance(encoder, VitSpec) and encoder.keep_class_token:
        return "its class token stands among the image tokens"
    return None


def _refusal(reducer: type[Method[Any]], spec: ModelSpec, keep: int) -> str | None:
    """Why a model cannot take the method, as far as one reason serves several methods."""
    vision = spec.vision
    common = _common_refusal(spec, inside_decoder=reducer.inside_decoder, ranks=issubclass(reducer, Ranking))
    if common is not None:
        return common
    if keep > vision.image_tokens:
        return f"{keep} tokens cannot be kept of {vision.image_tokens}"
    if reducer.uses_cls and not has_class_token(vision):
        return f"its encoder has no class token, which {reducer.name} reads; use attention instead"
    if isinstance(vision.projector, LdpSpec) and reducer.uses_attention:
        return f"its projector joins neighbouring features, so that their attention tells {reducer.name} nothing"
    return None
