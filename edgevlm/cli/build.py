"""`edgevlm build`: make TensorRT engines from a bundle's graphs, inside the bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgevlm.progress import show_progress
from edgevlm.tables import print_table


@click.command(name="build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="NAME", help="Device profile; `edgevlm targets list` shows them.")
@click.option("--rebuild", is_flag=True, help="Also build engines that are there and current.")
@click.option("--force", is_flag=True, help="Build although the forecast says that the model does not fit.")
def command(bundle: Path, target: str, rebuild: bool, force: bool) -> None:
    """Build the TensorRT engines of BUNDLE for a target.

    For RTX cards this works on any x86 or ARM Linux, with tensorrt-rtx and without a GPU; for a Jetson, on that Jetson.
    A build that was interrupted goes on where it was.
    """
    from edgevlm.runtimes.trt.build import build_engines

    with show_progress("build") as report:
        engines = build_engines(bundle, target, rebuild=rebuild, force=force, progress=report)
    rows = [
        [engine.role, str(engine.path.relative_to(bundle)), f"{engine.bytes:,}", "there" if engine.reused else "built"]
        for engine in engines
    ]
    print_table(["engine", "file", "bytes", ""], rows, numeric=("bytes",), title=str(bundle))
