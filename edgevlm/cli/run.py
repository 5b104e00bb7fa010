"""`edgevlm run`: ask a bundle about an image and stream the answer to the terminal.

The engines run in a child process, so that a crash inside one is three lines and an exit code, not the end of a shell
script without a word.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click

from edgevlm.errors import EngineError
from edgevlm.runtimes.base import KvCache
from edgevlm.tables import print_table

_SILENCE_S = 600.0


@click.command(name="run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="JPEG, PNG, WebP, BMP or GIF; several times for a question about several.  [default: none]",
)
@click.option("--video", is_flag=True, help="The images are frames of one video, in order, one a second.")
@click.option("--prompt", required=True, help="The question.")
@click.option("--system", help="System message.  [default: the model's own]")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Length of the answer at most.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Nucleus sampling; 1 is off.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Keep the k most probable tokens; 0 is off.")
@click.option("--seed", type=int, help="Of the random draws.")
@click.option("--stop", multiple=True, help="String that ends the answer; may be given several times.")
@click.option("--vision-engine", default="auto", show_default=True, help="tensorrt, openvino, onnxruntime or auto.")
@click.option("--decoder-engine", default="auto", show_default=True, help="tensorrt, onnxruntime, llama_cpp or auto.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda:0, tensorrt:0 or auto.")
@click.option("--threads", type=int, default=0, help="CPU threads.  [default: all physical cores]")
@click.option("--context-length", type=int, default=0, help="Positions of the key/value cache.")
@click.option(
    "--kv-cache",
    type=click.Choice(get_args(KvCache)),
    default="auto",
    show_default=True,
    help="Storage of keys and values, with llama.cpp; auto is f16 there.",
)
@click.option("--verify", is_flag=True, help="Check every file's SHA-256 first.")
@click.option("--stats", is_flag=True, help="Print the time of each stage, on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    bundle: Path,
    images: tuple[Path, ...],
    vision_engine: str,
    decoder_engine: str,
    threads: int,
    context_length: int,
    kv_cache: str,
    device: str,
    verify: bool,
    stats: bool,
    as_json: bool,
    **question: Any,
) -> None:
    """Ask BUNDLE about an image."""
    arguments = {
        "bundle": str(bundle),
        "engines": {
            "vision_engine": vision_engine,
            "decoder_engine": decoder_engine,
            "threads": threads,
            "context_length": context_length,
            "kv_cache": kv_cache,
            "device": device,
            "verify": verify,
        },
        "question": {"image": [str(image) for image in images], **question},
    }
    with _waiting() as done_waiting:

        def show(piece: str) -> None:
            done_waiting()
            if not as_json:
                sys.stdout.write(harmless(piece))
                sys.stdout.flush()

        answer, peak_rss_bytes = _ask(arguments, show, f"{vision_engine} vision, {decoder_engine} decoder")
    if as_json:
        click.echo(json.dumps({**answer, "peak_rss_bytes": peak_rss_bytes}, ensure_ascii=False, indent=2))
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    if stats:
        _print_stats(answer["stats"], peak_rss_bytes)


def _ask(arguments: dict[str, Any], show: Callable[[str], None], engines: str) -> tuple[dict[str, Any], int]:
    """Answer in a child process.

    Raises:
        EngineError: an engine crashed, hung or failed.
        InputError: the bundle, the image, the prompt or an option cannot be used.
    """
    from edgevlm.child import ChildError, run_child

    try:
        result = run_child("edgevlm.cli.run:answer_in_child", arguments, timeout=_SILENCE_S, on_message=show)
    except ChildError as error:
        what = error.what.replace("the process", "the engine's process", 1)
        hint = error.hint or "try another --vision-engine or --decoder-engine; `edgevlm doctor` checks them"
        raise EngineError(what, engines, hint) from error
    return result.value, result.peak_rss_bytes


def answer_in_child(
    send: Callable[[Any], None], bundle: str, engines: dict[str, Any], question: dict[str, Any]
) -> dict[str, Any]:
    """Child entry point: send the text piece by piece, return the answer as JSON."""
    import dataclasses

    from edgevlm.session import load

    with load(bundle, **engines) as session:
        stream = session.stream(**question)
        for piece in stream:
            send(piece)
        answer = stream.answer
    derived = {"ttft_ms": answer.stats.ttft_ms, "decode_tokens_per_second": answer.stats.decode_tokens_per_second}
    fields = dataclasses.asdict(answer)
    return {**fields, "stats": {**fields["stats"], **derived}}


def harmless(text: str) -> str:
    """Text for a terminal: new lines and tabs stay, other control characters become their escapes."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii") for char in text
    )


@contextlib.contextmanager
def _waiting() -> Iterator[Callable[[], None]]:
    """On a terminal, say that the bundle is being loaded until the yielded function is called."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console

    with Console(stderr=True).status("loading the bundle and reading the image") as status:
        yield status.stop


def _print_stats(stats: dict[str, Any], peak_rss_bytes: int) -> None:
    gaps = sorted(stats["token_gaps_ms"])
    stages = ("preprocess", "vision", "fusion", "prefill", "first_decode")
    times = [(stage, stats[f"{stage}_ms"]) for stage in stages]
    rows = [[stage.replace("_", " "), f"{time:.1f} ms"] for stage, time in times if time is not None]
    rows.append(["time to first token", f"{stats['ttft_ms']:.1f} ms"])
    if gaps:
        rows.append(["per token (median)", f"{gaps[len(gaps) // 2]:.1f} ms"])
        rows.append(["decode", f"{stats['decode_tokens_per_second']:.1f} tokens/s"])
    rows.append(["prompt tokens", f"{stats['prompt_tokens']} ({stats['image_tokens']} of the image)"])
    rows.append(["peak memory", f"{peak_rss_bytes / 1e6:.0f} MB"])
    rows.append(["engines", f"{stats['vision_engine']}, {stats['decoder_engine']}"])
    print_table(["stage", "value"], rows, stream=sys.stderr)
