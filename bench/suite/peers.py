"""EdgeVLM and its peers on the same work, by turns: `make bench-peers`.

In: nothing; a full-size checkpoint with random weights is made and exported. Out: `peers.json` and `peers.md`, and
their tables on the terminal. Each peer runs in a child process, one after another, several times around, so that what
slows the machine slows all. A peer that is missing or fails is a row with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from edgevlm.atomic import write_text
from edgevlm.bench.environment import environment, now
from edgevlm.bench.memory import TreeWatch
from edgevlm.bench.render.table import Table
from edgevlm.bench.suite import genai
from edgevlm.bench.suite.full_size import export
from edgevlm.bench.suite.llama_loop import compile_loop
from edgevlm.bench.suite.machine_class import this_class
from edgevlm.bench.suite.peer_report import PeerReport, Result, figures, ratios, render
from edgevlm.bench.suite.peer_runs import Measured, Work
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.child import Json, run_child
from edgevlm.errors import EdgeVLMError
from edgevlm.recipe import Recipe
from edgevlm.runtimes.checks import thread_count
from edgevlm.tables import print_table
from edgevlm.zoo.synth import synth

MODEL = "fastvlm-0.5b"
CONTEXT = 1024
_SILENCE_S = 900.0
_RUNS = "edgevlm.bench.suite.peer_runs"
WHOLE, DECODER, GGUF_DECODER, VISION = "EdgeVLM ONNX", "EdgeVLM ONNX decoder", "EdgeVLM GGUF decoder", "EdgeVLM vision"


@dataclass(frozen=True)
class Peer:
    """One row: what is called with which arguments, the packages it needs, and what makes its files beforehand.

    Attributes:
        target: a function of `peer_runs`, or `module:function`.
        against: our row that does the same; empty for ours.
        needs: modules that have to be installed.
        prepare: called once before the first turn; returns more arguments.
    """

    name: str
    about: str
    target: str
    arguments: dict[str, Json]
    against: str = ""
    needs: tuple[str, ...] = ()
    prepare: Callable[[], dict[str, Json]] = field(default=dict)


def peers(checkpoint: Path, onnx: Bundle, gguf: Bundle, work: Path) -> list[Peer]:
    """All rows: ours, whole and in parts, and for each part those who do the same.

    Args:
        checkpoint: in Apple's layout.
        onnx: its bundle in ONNX, int4.
        gguf: its bundle in GGUF, q4_0.
        work: a folder for the peers' own files.
    """
    graphs: dict[str, Json] = {"bundle": str(onnx.path)}
    vision: dict[str, Json] = {**graphs, "libraries": ["openvino"]}
    whole: dict[str, Json] = {**graphs, "libraries": ["openvino", "onnxruntime"]}
    decoder: dict[str, Json] = {**graphs, "libraries": ["onnxruntime"]}
    gguf_whole: dict[str, Json] = {"bundle": str(gguf.path), "libraries": ["openvino", "llama_cpp"]}
    gguf_decoder: dict[str, Json] = {"bundle": str(gguf.path), "libraries": ["llama_cpp"]}
    model = str(gguf.artifact("decoder", ".gguf"))
    qwen2 = work / "qwen2"

    def genai_model() -> dict[str, Json]:
        return {"folder": str(genai.build(qwen2, work / "genai"))}

    def loop() -> dict[str, Json]:
        return {"program": str(compile_loop(work)), "model": model}

    genai.write_qwen2(checkpoint, onnx.spec.decoder, qwen2)
    found = [
        Peer(WHOLE, "The bundle in a session, int4 decoder, float16 vision weights.", "edgevlm_whole", whole),
        Peer("EdgeVLM GGUF", "The same with a Q4_0 decoder.", "edgevlm_whole", gguf_whole),
        Peer(DECODER, "Its int4 decoder alone, in our engine.", "edgevlm_decoder", decoder),
        Peer(
            "onnxruntime-genai",
            "Its own int4 model of the same weights (blocks of 128, accuracy level 4) in its own generator.",
            *("genai_decoder", {}, DECODER, ("onnxruntime_genai", "onnx_ir"), genai_model),
        ),
    ]
    for dtype in ("float32", "bfloat16"):
        about = "The decoder, unquantized, as transformers' Qwen2 in eager mode; its vision side needs timm: left out."
        given: dict[str, Json] = {"folder": str(qwen2), "dtype": dtype}
        found.append(Peer(f"transformers {dtype}", about, "transformers_decoder", given, DECODER, ("transformers",)))
    found += [
        Peer(GGUF_DECODER, "Its Q4_0 decoder alone, in our engine.", "edgevlm_decoder", gguf_decoder),
        Peer(
            "llama.cpp",
            "The plain C loop over the same build of llama.cpp and the same Q4_0 file; the prompt is embeddings.",
            *("llama_cpp_decoder", {}, GGUF_DECODER, ("llama_cpp",), loop),
        ),
        Peer(VISION, "Its vision graph alone, in the engine that `auto` picks here.", "edgevlm_vision", vision),
        Peer(
            "OpenVINO",
            "Its runtime on our vision graph, with its defaults. OpenVINO GenAI is left out: it runs models that "
            "optimum-intel has converted, not our graphs.",
            *("openvino_vision", graphs, VISION, ("openvino",)),
        ),
        Peer("ONNX Runtime", "On our vision graph, with its defaults.", "onnxruntime_vision", graphs, VISION),
    ]
    for dtype in ("float32", "bfloat16"):
        about = "Our torch module of the vision side in eager mode, in place of transformers', which needs timm."
        given = {"checkpoint": str(checkpoint), "dtype": dtype}
        found.append(Peer(f"torch vision {dtype}", about, "torch_vision", given, VISION, ("torch",)))
    return found


def measure(asked: Sequence[Peer], work: Work, turns: int, progress: Callable[[str], None]) -> list[Result]:
    """Run all peers by turns; one that fails is not asked again.

    Where the first row says how long its prompt is, the others get one as long.
    """
    failures: dict[str, str] = {}
    made: dict[str, dict[str, Json]] = {}
    took: dict[str, list[Measured]] = {peer.name: [] for peer in asked}
    for peer in asked:
        missing = [name for name in peer.needs if importlib.util.find_spec(name) is None]
        if missing:
            failures[peer.name] = f"{missing[0]} is not installed"
            continue
        try:
            made[peer.name] = {**peer.arguments, **peer.prepare()}
        except (EdgeVLMError, OSError, subprocess.CalledProcessError) as error:
            failures[peer.name] = _reason(error)
    for turn in range(turns):
        for peer in asked:
            if peer.name in failures:
                continue
            progress(f"turn {turn + 1} of {turns}: {peer.name}")
            try:
                done = _once(peer, made[peer.name], work)
            except EdgeVLMError as error:
                failures[peer.name] = _reason(error)
                continue
            took[peer.name].append(done)
            if peer is asked[0] and done.positions:
                work = work.model_copy(update={"positions": done.positions})
    return [
        Result(
            name=peer.name,
            about=peer.about,
            against=peer.against,
            failure=failures.get(peer.name, ""),
            measured=None if peer.name in failures else joined(took[peer.name]),
        )
        for peer in asked
    ]


def _once(peer: Peer, arguments: dict[str, Json], work: Work) -> Measured:
    """One process from start to end.

    Raises:
        EdgeVLMError: it failed.
    """
    watches: list[TreeWatch] = []
    with ExitStack() as stack:

        def hear(message: Json) -> None:
            if isinstance(message, int):
                watches.append(stack.enter_context(TreeWatch(message)))

        done = run_child(
            peer.target if ":" in peer.target else f"{_RUNS}:{peer.target}",
            {"work": work.model_dump(), **arguments},
            timeout=_SILENCE_S,
            on_message=hear,
            environment={"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"},
        )
    memory = watches[0].memory() if watches else None
    peak = max(done.peak_rss_bytes, memory.peak_rss_bytes if memory else 0)
    return Measured.model_validate(done.value).model_copy(update={"peak_rss_bytes": peak})


def joined(turns: Sequence[Measured]) -> Measured:
    """All processes of one peer as one sample."""
    return Measured(
        load=[ms for turn in turns for ms in turn.load],
        preprocess=[ms for turn in turns for ms in turn.preprocess],
        vision=[ms for turn in turns for ms in turn.vision],
        prefill=[ms for turn in turns for ms in turn.prefill],
        first_decode=[ms for turn in turns for ms in turn.first_decode],
        decode=[ms for turn in turns for ms in turn.decode],
        positions=turns[-1].positions,
        peak_rss_bytes=max(turn.peak_rss_bytes for turn in turns),
        engine=turns[-1].engine,
    )


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, EdgeVLMError):
        return error.what
    if isinstance(error, subprocess.CalledProcessError):
        said = str(error.stderr or "").strip().splitlines()
        return f"cannot be built: {said[-1][:200]}" if said else f"cannot be built: exit code {error.returncode}"
    return str(error)


def compare(out: Path, work: Work, turns: int, *, tiny: bool, progress: Callable[[str], None]) -> PeerReport:
    """Make the model and its bundles, measure, and write `peers.json` and `peers.md` to `out`.

    Raises:
        EdgeVLMError: the model cannot be exported, or the report cannot be written.
    """
    started = environment(now())
    with tempfile.TemporaryDirectory(prefix="edgevlm-peers-") as folder:
        place = Path(folder)
        progress(f"making {MODEL}")
        synth(MODEL, place / MODEL, tiny=tiny)

        def bundle(kind: str) -> Bundle:
            progress(f"exporting to {kind}")
            recipe = Recipe.from_sources(None, {"model": str(place / MODEL), "format": kind, "precision": "int4"})
            return open_bundle(export(recipe, place / kind).bundle)

        asked = peers(place / MODEL, bundle("onnx"), bundle("gguf"), place)
        results = measure(asked, work, turns, progress)
    whole = results[0].measured
    report = PeerReport(
        environment=started.model_copy(update={"finished": now()}),
        machine_class=this_class().name,
        model=f"{MODEL}{', tiny' if tiny else ''}, random weights",
        work=work if whole is None else work.model_copy(update={"positions": whole.positions}),
        turns=turns,
        results=results,
    )
    write_text(out / "peers.json", report.model_dump_json(indent=1) + "\n")
    write_text(out / "peers.md", render(report))
    return report


def _print(table: Table, title: str) -> None:
    print_table(table.headers, [[str(cell) for cell in row] for row in table.rows], title=title, numeric=table.numeric)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="edgevlm.bench.suite.peers", description="measure EdgeVLM and its peers")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder of the report (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="processes of each peer (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="prompts or images in each (%(default)s)")
    parser.add_argument("--steps", type=int, default=32, help="tokens after each prompt (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0 for all physical cores (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see whether everything runs")
    given = parser.parse_args(arguments)
    if min(given.turns, given.rounds, given.steps) < 1:
        parser.error("--turns, --rounds and --steps are 1 or more")
    try:
        work = Work(
            threads=thread_count(given.threads), context=CONTEXT, positions=286, rounds=given.rounds, steps=given.steps
        )
        report = compare(given.out, work, given.turns, tiny=given.tiny, progress=lambda line: print(line, flush=True))
    except EdgeVLMError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    _print(figures(report), "Figures")
    _print(ratios(report), "Ratios: above 1, ours is that many times as fast, or that much smaller")
    print(f"Wrote {given.out / 'peers.md'} and {given.out / 'peers.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
