"""Compile a recipe: load, prune, export, verify, and hand over one bundle or nothing.

`compile_recipe(recipe, out)` is the whole flow of the host half. The bundle grows in a temporary sibling of `out` and
gets its final name only after it has answered like the original.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm.atomic import atomic_folder
from edgevlm.bundle import Bundle, open_bundle, sha256_file, write_manifest
from edgevlm.calibration import Calibration
from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import UnsupportedError
from edgevlm.exporters import onnx, tensorrt
from edgevlm.exporters.base import Progress
from edgevlm.exporters.gguf import exporter as gguf
from edgevlm.exporters.gguf.mmproj import export_mmproj
from edgevlm.exporters.gguf.mmproj import supports as mmproj_supports
from edgevlm.exporters.newline import write_newline
from edgevlm.models import load, resolve
from edgevlm.models.rebuild import with_note
from edgevlm.pipeline.gguf_choice import GGUF_PRECISIONS, gguf_type, imatrix_misfit, write_importances
from edgevlm.pipeline.manifest import make_manifest, source_name, tool_versions
from edgevlm.pipeline.memory_check import require_memory
from edgevlm.pipeline.passes import parse_passes, plan_passes, run_passes, settled
from edgevlm.pipeline.reuse import take_over
from edgevlm.pipeline.support import refusal
from edgevlm.pipeline.tensorrt_choice import UNPROVED, check_target, options_for, tensorrt_misfit
from edgevlm.pipeline.verify import require, thresholds, verify
from edgevlm.pipeline.vision_choice import choose_vision
from edgevlm.progress import part_of
from edgevlm.quant.vision import calibrated, plan_vision
from edgevlm.recipe import Recipe, VisionPrecision
from edgevlm.spec import ModelSpec

#: Shares of the progress bar: load, passes, a plan for the vision tower, export, verify.
_LOADED, _PRUNED, _PLANNED, _EXPORTED = 0.02, 0.3, 0.45, 0.6


def compile_recipe(
    recipe: Recipe,
    out: Path,
    *,
    force: bool = False,
    over_memory: bool = False,
    like: Bundle | None = None,
    progress: Progress,
) -> Bundle:
    """Turn a checkpoint into a verified bundle at `out`.

    Args:
        recipe: what to make of which model.
        out: where the bundle goes; must not exist unless `force`.
        force: replace what is at `out`.
        over_memory: go on where the forecast says that the model exceeds the target's memory.
        like: a bundle whose decoder is taken over where this one's comes out equal; the result is the same without.
        progress: called with a share of 1 and what is being done.

    Raises:
        InputError: the model, the recipe or `out` cannot be used. Nothing was written.
        ParityError: the bundle does not answer like the original. Nothing was written.
    """
    progress(0, 1, "load")
    check_target(recipe)
    passes = parse_passes(recipe)
    calibration = _calibration(recipe)
    folder = resolve(recipe.model)
    asked = recipe.vision_precision or ("fp32" if recipe.precision == "fp32" else "fp16")
    vision_precision: VisionPrecision = "w8a8" if asked == "auto" else asked

    def accept(spec: ModelSpec) -> None:
        if vision_precision == "w8a8":
            calibrated(calibration)
        _refuse_unsupported(recipe, plan_passes(passes, spec, calibration), vision_precision)
        if not over_memory:
            require_memory(recipe, spec, folder)

    model = load(folder, resolution=recipe.resolution, prompt_template=recipe.prompt_template, accept=accept)
    decoder_precision = GGUF_PRECISIONS[gguf_type(recipe)] if recipe.format == "gguf" else recipe.precision
    pruned = _PRUNED if passes else _LOADED
    with atomic_folder(out, replace=force) as work:
        model = run_passes(passes, model, calibration, part_of(progress, _LOADED, pruned))
        recipe = settled(recipe, passes)
        static = None
        if asked == "auto":
            choice = choose_vision(recipe, model, calibration, part_of(progress, pruned, _PLANNED))
            vision_precision, static, pruned = choice.precision, choice.static, _PLANNED
            model = with_note(model, choice.reason)
            recipe = recipe.model_copy(update={"vision_precision": vision_precision})
        elif vision_precision == "w8a8":
            static = plan_vision(model, calibration, part_of(progress, pruned, _PLANNED))
            pruned = _PLANNED
        if static is not None:
            model = with_note(model, str(static))
        if recipe.tensorrt_dtype == "bf16":
            model = with_note(model, UNPROVED)
        report = part_of(progress, pruned, _EXPORTED)
        sources = {source_name(path, folder): sha256_file(path) for path in model.sources}
        taken = [] if like is None else take_over(recipe, model.spec, like, sources, tool_versions(), work)
        if recipe.format == "gguf":
            imatrix = write_importances(recipe, model, calibration, work, part_of(report, 0, 0.2))
            artifacts = taken or gguf.export(
                model, work, gguf_type=gguf_type(recipe), imatrix=imatrix, progress=part_of(report, 0.2, 0.5)
            )
            if imatrix is not None and recipe.imatrix != "keep":
                imatrix.unlink()
            artifacts += onnx.export_vision_part(
                model,
                work,
                precision=decoder_precision,
                vision_precision=vision_precision,
                static=static,
                progress=part_of(report, 0.5, 1),
            )
            if recipe.mmproj:
                stored = "fp16" if vision_precision == "w8a8" else vision_precision
                artifacts += export_mmproj(model, work, precision=stored, progress=part_of(report, 1, 1))
        elif recipe.format == "tensorrt":
            artifacts = tensorrt.export(
                model,
                work,
                precision=recipe.precision,
                vision_precision=vision_precision,
                static=static,
                options=options_for(recipe, model.spec),
                progress=report,
            )
        else:
            artifacts = onnx.export(
                model,
                work,
                precision=recipe.precision,
                vision_precision=vision_precision,
                static=static,
                decoder=taken,
                progress=report,
            )
        artifacts += write_newline(model, work)
        manifest = make_manifest(recipe, model, sources, work, artifacts)
        write_manifest(work, manifest)
        in_decoder = model.spec.decoder.token_drop is not None
        limits = thresholds(decoder_precision, vision_precision, recipe.verify, decoder_drops=in_decoder)
        results = verify(model, work, limits, part_of(progress, _EXPORTED, 1))
        require(results, str(out))
        write_manifest(work, manifest.model_copy(update={"parity": results}))
    progress(1, 1, "done")
    return open_bundle(out)


def _calibration(recipe: Recipe) -> Calibration | None:
    data = recipe.calibration
    if data is None:
        return None
    return open_calibration(data.source, data.n, seed=recipe.seed, memory=int(data.memory_gb * 1e9))


def _refuse_unsupported(recipe: Recipe, spec: ModelSpec, vision: VisionPrecision) -> None:
    reason = refusal(spec, recipe.format, recipe.precision, gguf_type(recipe), vision)
    if recipe.format == "gguf":
        reason = reason or (mmproj_supports(spec) if recipe.mmproj else None)
    elif recipe.gguf_type is not None:
        reason = f"gguf_type {recipe.gguf_type} belongs to format gguf, not {recipe.format}"
    elif recipe.mmproj:
        reason = f"mmproj belongs to format gguf, not {recipe.format}"
    reason = reason or imatrix_misfit(recipe) or tensorrt_misfit(recipe)
    if reason is not None:
        raise UnsupportedError(
            f"cannot export {spec.name} to {recipe.format}: {reason}", recipe.model, "see docs/export.md"
        )
    if recipe.format == "tensorrt":
        options_for(recipe, spec)
