"""The lint: each node of a graph against the table, and, where it is installed, against tensorrt-rtx's own parser.

In: an ONNX file and a toolkit. Out: findings, each with its node, its operator, the reason, and the pass or flag that
removes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.exporters.lint.graphs import Node, nodes_of, read_model
from edgevlm.exporters.lint.patterns import PATTERNS
from edgevlm.exporters.lint.rtx_parser import ask_parser, parser_version
from edgevlm.exporters.lint.support import Support, Toolkit
from edgevlm.runtimes.build_plan import PLAN, read_build_plan
from edgevlm.targets.catalog import load_target
from edgevlm.targets.profile import version_tuple

_BY_PARSER = "export with --format tensorrt and this target; the parser's words say what it lacks"


@dataclass(frozen=True)
class Finding:
    """One thing that a toolkit will not read, or not read well.

    Attributes:
        file: name of the graph's file.
        node: the node's name.
        op: its operator, with its domain where that is not ONNX's.
        why: what is wrong.
        fix: the pass or flag that removes it.
        blocks: whether a build fails on it.
        source: where this is known from.
    """

    file: str
    node: str
    op: str
    why: str
    fix: str
    blocks: bool
    source: str


def lint(subject: Path, target: str, jetpack: str | None = None) -> tuple[Toolkit, list[Finding]]:
    """Findings on a bundle's graphs, or on one ONNX file.

    Args:
        subject: a bundle, or an .onnx file.
        target: the name of a profile.
        jetpack: of a Jetson; without it, the oldest release that a bundle's build plan is written for, or else the
            profile's first.

    Raises:
        InputError: there is no such file or target, or it is no ONNX; a target without TensorRT; an unknown JetPack.
    """
    profile = load_target(target)
    if subject.is_file():
        toolkit = Toolkit.of(profile, jetpack)
        return toolkit, lint_graph(subject, toolkit)
    bundle = open_bundle(subject)
    toolkit = Toolkit.of(profile, jetpack, _written_for(bundle))
    findings = []
    for entry in bundle.manifest.artifacts:
        if entry.format == "onnx":
            findings += lint_graph(bundle.path / entry.path, toolkit)
        elif entry.role == "decoder" and entry.format == "gguf":
            why, fix = "a GGUF file, which TensorRT does not read", "export with --format tensorrt"
            findings.append(Finding(entry.path, "(file)", "GGUF", why, fix, True, "docs/bundle.md"))
    return toolkit, findings


def _written_for(bundle: Bundle) -> tuple[int, ...]:
    """The TensorRT version that a bundle's graphs are written for; empty where none is named."""
    path = bundle.path / PLAN
    return version_tuple(read_build_plan(path).tensorrt) if path.is_file() else ()


def lint_graph(path: Path, toolkit: Toolkit, *, ask: bool = True) -> list[Finding]:
    """Findings on one ONNX file, in the order of its nodes, the parser's own last.

    Args:
        path: the file; its external data lies beside it.
        toolkit: which TensorRT is to read it.
        ask: also ask the parser of tensorrt-rtx, where that is installed and the toolkit is tensorrt-rtx.

    Raises:
        InputError: the file is no ONNX model, or a tensor that is needed cannot be read.
    """
    support = Support(toolkit)
    model = read_model(path)
    findings = list(_opset(model, path, support))
    for node in nodes_of(model, path.parent):
        findings += _operator(node, path.name, support)
        findings += _patterns(node, path.name, support)
    if ask and toolkit.kind == "rtx":
        version = parser_version()
        known = {finding.node for finding in findings if finding.blocks}
        refusals = [] if version is None else ask_parser(path)
        for refusal in refusals:
            if refusal.node not in known:
                source = f"parser of tensorrt-rtx {version}"
                findings.append(Finding(path.name, refusal.node, refusal.op, refusal.reason, _BY_PARSER, True, source))
    return findings


def _opset(model: onnx.ModelProto, path: Path, support: Support) -> Iterator[Finding]:
    newest = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    row = support.opset
    if newest > row.newest:
        why = f"opset {newest}; this version was written for {row.newest}, and reads newer ones operator by operator"
        fix = "export with --format tensorrt and this target"
        yield Finding(path.name, "(model)", f"opset {newest}", why, fix, False, support.sources[row.source])


def _operator(node: Node, file: str, support: Support) -> Iterator[Finding]:
    row = support.operators.get((node.domain, node.op))
    label = f"{node.domain}.{node.op}" if node.domain else node.op
    if row is None:
        why = f"{support.toolkit} does not know this operator"
        fix = "export with --format tensorrt and this target, or register a plugin for it on the device"
        yield Finding(file, node.name, label, why, fix, True, "not in the table of operators")
    elif not support.knows(row):
        since = row.since.get(support.toolkit.kind)
        why = f"it is read from version {since} on" if since else "it is not read"
        yield Finding(file, node.name, label, why, row.fix, True, support.sources[row.source])


def _patterns(node: Node, file: str, support: Support) -> Iterator[Finding]:
    for row in support.patterns:
        if PATTERNS[row.pattern](node):
            label = f"{node.domain}.{node.op}" if node.domain else node.op
            yield Finding(file, node.name, label, row.why, row.fix, row.blocks, support.sources[row.source])
