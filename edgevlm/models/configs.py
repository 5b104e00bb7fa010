"""Reading the `config.json` of a stranger: fields checked by pydantic, what is not supported refused by name."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import CheckpointError
from edgevlm.validation import first_problem


class PublishedConfig(BaseModel):
    """Base of the configurations that loaders read: fields that they do not name are training settings."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ImageTokenConfig(PublishedConfig):
    """The id of an image embedding, which transformers' LLaVAs read by either of two names."""

    image_token_index: int | None = Field(
        default=None, ge=0, validation_alias=AliasChoices("image_token_index", "image_token_id")
    )


C = TypeVar("C", bound=BaseModel)


def validated(kind: type[C], raw: dict[str, Any], where: str) -> C:
    """`raw` as a configuration.

    Raises:
        CheckpointError: names the first field that is missing or has a value that does not fit.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise CheckpointError(f"config.json: {field}: {problem}", where, "give the published config") from error


def section(raw: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """A nested object of a configuration; empty where it is absent.

    Raises:
        CheckpointError: it is something else.
    """
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json: {name} is not an object", where, "give the published config")
    return value


def require(raw: dict[str, Any], field: str, allowed: tuple[Any, ...], where: str) -> None:
    """Refuse a field whose value this project does not support; absent, null and the values of `allowed` pass.

    Raises:
        CheckpointError: names the field, its value and what is supported.
    """
    value = raw.get(field)
    if value is None or any(value == each and type(value) is type(each) for each in allowed):
        return
    choices = " or ".join(repr(each) for each in allowed) or "none"
    raise CheckpointError(f"config.json: {field} {value!r:.60} is not supported", where, f"supported: {choices}")
