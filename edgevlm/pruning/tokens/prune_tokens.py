"""The pass `prune_tokens`: put a reducer of visual tokens into the vision side."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import InputError
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.attention_scores import has_class_token
from edgevlm.pruning.tokens.reducer import Method, Options
from edgevlm.spec import LdpSpec, ModelSpec, QFormerSpec, RowsLayout, VitSpec


class PruneTokensConfig(BaseModel):
    """What a recipe says about it.

    Attributes:
        method: a name of `REDUCERS`.
        keep: tokens to keep of an image, or of each of its tiles.
        options: the method's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    keep: int = Field(ge=1)
    options: dict[str, Any] = {}


class PruneTokens(Pass[PruneTokensConfig]):
    """Fewer image embeddings leave the vision graph, so that every decoder gains."""

    name = "prune_tokens"
    stage = Stage.TOKENS
    Config = PruneTokensConfig

    def __init__(self, config: PruneTokensConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.reducer = _find(config.method)
        self.options = _options(self.reducer, config.options, seed)

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        keep = self.config.keep
        return _refusal(self.reducer, spec, keep) or self.reducer.refuses(spec, keep, self.options)

    def planned(self, spec: ModelSpec) -> ModelSpec:
        """The spec after the pass."""
        return self.reducer.planned(spec, self.config.keep, self.options)

    def run(self, model: VlmModel, context: PassContext) -> VlmModel:  # noqa: ARG002
        """The model after the pass."""
        return self.reducer.reduced(model, self.config.keep, self.options)


def _find(name: str) -> type[Method[Any]]:
    if name in REDUCERS:
        return REDUCERS[name]
    near = difflib.get_close_matches(name, REDUCERS, n=1, cutoff=0.4)
    guess = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"there is no token reducer {name!r}", "prune_tokens", f"{guess}edgevlm pruners lists all")


def _options(reducer: type[Method[Any]], given: dict[str, Any], seed: int) -> Options:
    """The method's options; a seed that was not given is the recipe's."""
    known = reducer.Options.model_fields
    try:
        return reducer.Options.model_validate({"seed": seed, **given} if "seed" in known else given)
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        raise InputError(
            f"{reducer.name} option {option!r}: {problem['msg']}",
            "prune_tokens",
            f"options of {reducer.name}: {', '.join(known) or 'none'}",
        ) from error


def _refusal(reducer: type[Method[Any]], spec: ModelSpec, keep: int) -> str | None:
    """Why a model cannot take the method, as far as one reason serves several methods."""
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
    if isinstance(spec.prompt.image_layout, RowsLayout):
        if reducer.inside_decoder:
            return "it joins the tokens of all tiles to one map, so that the number of an image's tokens is not fixed"
        return "it joins the tokens of all tiles to one map with an end to each row, for which every token is needed"
    if isinstance(encoder, VitSpec) and encoder.keep_class_token:
        return "its class token stands among the image tokens"
    if keep > vision.image_tokens:
        return f"{keep} tokens cannot be kept of {vision.image_tokens}"
    if reducer.uses_cls and not has_class_token(vision):
        return f"its encoder has no class token, which {reducer.name} reads; use attention instead"
    if isinstance(projector, LdpSpec) and reducer.uses_attention:
        return f"its projector joins neighbouring features, so that their attention tells {reducer.name} nothing"
    return None
