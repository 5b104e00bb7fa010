"""What is wrong with fields that somebody wrote, in one line.

In: pydantic's error. Out: the first field that does not fit, and why.
"""

from pydantic import ValidationError

#: What pydantic puts in front of the text of an exception that a validator raised.
_RAISED = "Value error, "


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The path of the first wrong field, with dots (empty for the whole), and what is wrong with it."""
    problem = error.errors()[0]
    return ".".join(str(part) for part in problem["loc"]), problem["msg"].removeprefix(_RAISED)
