"""Compiling a chat template, which is a stranger's program, so that running it is harmless and short.

In: Jinja2 source. Out: a template to render with `messages` and `add_generation_prompt`. It runs in Jinja2's immutable
sandbox, and only a small part of the language is let in: output, conditions, loops at most two deep, and a list of
filters. What is left out is what could build a huge text or run for ever: macros, recursion, ranges, multiplication,
string formatting, and variables set to anything larger than what they were taken from.
"""

from __future__ import annotations

from typing import Any

import jinja2.ext
from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgevlm.errors import BundleError

_MAX_CHARS = 16_384
_MAX_LOOP_DEPTH = 2
_STRUCTURE = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign)
_VALUES = (nodes.Name, nodes.NSRef, nodes.Const, nodes.List, nodes.Tuple, nodes.Getattr, nodes.Getitem, nodes.Slice)
_OPERATORS = (nodes.Add, nodes.Sub, nodes.Neg, nodes.Concat, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr)
_CALLS = (nodes.Compare, nodes.Operand, nodes.Filter, nodes.Test, nodes.Call, nodes.Keyword)
_ALLOWED = (*_STRUCTURE, *_VALUES, *_OPERATORS, *_CALLS, nodes.Break, nodes.Continue)
_GROWING = (nodes.Add, nodes.Concat, nodes.List, nodes.Tuple)
_FILTERS = (
    *("capitalize", "count", "default", "d", "first", "int", "last", "length", "list", "lower", "reject", "rejectattr"),
    *("select", "selectattr", "string", "trim", "upper"),
)
_METHODS = ("endswith", "get", "items", "keys", "lower", "lstrip", "rstrip", "split", "startswith", "strip", "upper")


class _Environment(ImmutableSandboxedEnvironment):
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | list | dict | tuple) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No `str.format`: its width alone may ask for any amount of memory."""


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template.

    Raises:
        BundleError: it is malformed, too long, or uses more of the language than is let in.
    """
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.globals = {"raise_exception": _raise_exception, "namespace": environment.globals["namespace"]}
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    try:
        if len(source) > _MAX_CHARS:
            raise TemplateError(f"it has {len(source)} characters, more than {_MAX_CHARS}")
        tree = environment.parse(source)
        _check(tree, 0)
        return environment.from_string(tree)
    except (TemplateError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BundleError(
            f"the chat template is not usable: {reason}", "chat_template", "use a plain ChatML-like template"
        ) from error


def _check(node: nodes.Node, loop_depth: int) -> None:
    """Refuse what is not let in.

    Raises:
        TemplateError: it names what was found and its line.
    """
    if isinstance(node, nodes.For):
        loop_depth += 1
    if (
        not isinstance(node, _ALLOWED)
        or loop_depth > _MAX_LOOP_DEPTH
        or (isinstance(node, nodes.For) and node.recursive)
        or (isinstance(node, nodes.Assign) and next(node.node.find_all(_GROWING), None) is not None)
        or (isinstance(node, nodes.Assign) and isinstance(node.node, _GROWING))
    ):
        raise TemplateError(f"{type(node).__name__} is not allowed in this form (line {node.lineno})")
    for child in node.iter_child_nodes():
        _check(child, loop_depth)


def _raise_exception(message: str) -> None:
    raise ValueError(message)
