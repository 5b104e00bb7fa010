"""Every error tells what, where and what to do: none of its three lines may be empty where it is raised."""

import ast
import inspect

from house import modules

from edgevlm import errors

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, errors.EdgeVLMError) and cls is not errors.EdgeVLMError
}
PARTS = ("what", "where", "hint")


def missing(call: ast.Call, name: str) -> set[str]:
    """The parts that a constructed error of class `name` leaves empty."""
    given = dict(zip(PARTS, call.args, strict=False)) | {word.arg or "": word.value for word in call.keywords}
    empty = {part for part in PARTS if part not in given}
    empty |= {part for part, value in given.items() if isinstance(value, ast.Constant) and not value.value}
    return empty - ({"hint"} if CLASSES.get(name, errors.EdgeVLMError).usual_hint else set())


def test_no_error_leaves_a_line_empty() -> None:
    found = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if (name in CLASSES or name == "EdgeVLMError") and isinstance(node, ast.Call) and missing(node, name):
                found.append(f"{module}:{node.lineno} {sorted(missing(node, name))}")
    assert not found


def test_the_usual_hint_stands_in_for_an_empty_one() -> None:
    error = errors.CheckpointError("what", "where")
    assert error.hint == errors.CheckpointError.usual_hint != ""
    assert errors.CheckpointError("what", "where", "do this").hint == "do this"
