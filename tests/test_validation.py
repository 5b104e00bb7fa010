"""The first wrong field is named with its path, in the words that a validator chose."""

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from edgevlm.validation import first_problem


class Inner(BaseModel):
    share: float

    @field_validator("share")
    @classmethod
    def _check(cls, value: float) -> float:
        if value > 1:
            raise ValueError("a share between 0 and 1")
        return value


class Outer(BaseModel):
    parts: list[Inner]


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        ({"parts": [{"share": 0.5}, {"share": 2}]}, "parts.1.share", "a share between 0 and 1"),
        ({"parts": [{}]}, "parts.0.share", "Field required"),
        ([], "", "Input should be a valid dictionary or instance of Outer"),
    ],
)
def test_first_problem(given: object, field: str, problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(given)
    assert first_problem(caught.value) == (field, problem)
