"""The study itself: every cell exported and asked, then every cell timed, noted down, and all of it in one report.

Accuracy comes first, since it does not mind a busy machine; then all bundles are timed in one block. A cell that fails
costs one row. A study that is stopped, by Ctrl-C or a power cut, goes on where it was when it is started again in the
same folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.bench.accuracy.scoring import compare
from edgevlm.bench.baseline import find_reference
from edgevlm.bench.definitions import study_definitions
from edgevlm.bench.environment import environment, now
from edgevlm.bench.grid import PLAIN, fronts
from edgevlm.bench.job import Job, Prediction
from edgevlm.bench.pace import Pace
from edgevlm.bench.plan import IS_BASELINE, Work, accuracy_plan, bundle_job
from edgevlm.bench.report import SCHEMA_VERSION, Environment, Paired, Pruning, Report, Row, Settings, Study
from edgevlm.bench.rows import describe, without_bundle
from edgevlm.bench.study.plan import Cell, Method, ReadFlag, check_methods, plan_cells
from edgevlm.bench.study.shelf import UNPRUNED, Shelf
from edgevlm.bench.study.state import Setting, State, clear
from edgevlm.bench.study.timing import is_timed, not_timed, time_cell, time_unpruned
from edgevlm.bench.sweep import Progress, measure_row
from edgevlm.bench.worker import TARGET
from edgevlm.bench.write import claim
from edgevlm.bundle import Bundle
from edgevlm.errors import EdgeVLMError, UnsupportedError
from edgevlm.longrun import interrupts
from edgevlm.models import load
from edgevlm.recipe import Recipe
from edgevlm.runtimes.select import VISION_ENGINES
from edgevlm.spec import ModelSpec

#: Fields of a recipe that `edgevlm export` has a flag for, as far as a study varies them.
_FLAGS = ("format", "precision", "gguf_type", "vision_precision", "resolution")


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        recipe: of the unpruned model; its calibration data go to the methods that need them.
        methods: of the grid.
        percents: of the unpruned model's image tokens.
        settings: how every cell is measured.
        out: folder for state and report.
        read_flag: the pass that a value of `--prune-tokens` stands for.
        restart: replace what another study left in `out`.
        retry: measure cells again that failed.
        save_bundles: leave the cells' bundles in `out`.
        timing: time them, too; otherwise their bundles stay for another run.
    """

    recipe: Recipe
    methods: tuple[Method, ...]
    percents: tuple[float, ...]
    settings: Settings
    out: Path
    read_flag: ReadFlag
    restart: bool = False
    retry: bool = False
    save_bundles: bool = False
    timing: bool = True


def study_pruning(request: Request, *, progress: Progress, worker: str = TARGET) -> Report:
    """Measure what is not measured yet and report the whole grid.

    Args:
        request: what the user asked for.
        progress: called with seconds done, seconds in all, and what is being done.
        worker: `module:function` that measures a job in a child process.

    Raises:
        InputError: a method, an option, the task or the model does not exist, or `out` holds another study. No work
            was done.
        EdgeVLMError: the unpruned model cannot be exported or measured.
    """
    check_methods(request.methods, request.recipe, request.read_flag)
    accuracy_plan(request.settings)
    reference = find_reference(request.recipe.model)
    spec = load(reference.folder, resolution=request.recipe.resolution).spec
    cells = plan_cells(spec, request.methods, request.percents, request.recipe, request.read_flag)
    claim(request.out)
    if request.restart:
        clear(request.out)
    here = environment(now())
    state = State(request.out, _setting(request, reference.content, here), here)
    if request.retry:
        state.forget_failures()
    run = _Run(request, state, here, worker, progress)
    interrupted = run.measure(cells)
    rows = [run.row(UNPRUNED), *(run.cell_row(cell) for cell in cells)]
    if not interrupted and request.timing:
        run.shelf.close()
    few, fast = fronts(rows, spec.vision.image_tokens)
    return Report(
        schema_version=SCHEMA_VERSION,
        environment=state.environment.model_copy(update={"finished": now()}),
        settings=request.settings,
        rows=_with_comparisons(rows, state, request.settings),
        interrupted=interrupted,
        definitions=study_definitions(),
        study=Study(
            kind="prune",
            model=request.recipe.model,
            unpruned=UNPRUNED,
            image_tokens=spec.vision.image_tokens,
            methods=[method.label for method in request.methods],
            keep_percent=list(request.percents),
            front_tokens=few,
            front_ttft=fast,
        ),
    )


def _setting(request: Request, content: str, here: Environment) -> Setting:
    settings = request.settings.model_dump(mode="json", exclude={"command_line"})
    return Setting(
        model=content,
        recipe=request.recipe.model_dump(mode="json"),
        measuring=settings,
        machine={
            "processor": here.cpu_model,
            "usable cores": here.usable_cores,
            "edgevlm": here.edgevlm,
            **here.packages,
        },
    )


class _Run:
    """One run of a study."""

    def __init__(self, request: Request, state: State, here: Environment, worker: str, progress: Progress) -> None:
        self.request, self.state, self.here, self.worker, self.progress = request, state, here, worker, progress
        self.shelf = Shelf(request.out / "bundles", request.recipe, request.read_flag, keep=request.save_bundles)
        self.settings = request.settings
        self.accuracy = accuracy_plan(request.settings)
        self.unpruned_answers: list[Prediction] = []

    def measure(self, cells: Sequence[Cell]) -> bool:
        """Measure all that can be made and is not done; whether it was interrupted."""
        names = [UNPRUNED, *(cell.name for cell in cells if not cell.reason)]
        asked = [name for name in names if self.state.done(name) is None]
        timed = [name for name in names if self._waits(name)] if self.request.timing else []
        jobs = [self._asking(name) for name in asked]
        pace = Pace([*jobs, *(bundle_job(self.shelf.path(name), self.settings, None) for name in timed)], self.progress)
        try:
            full = self._unpruned(pace)
            self.unpruned_answers = self.state.answers(full)
            for cell in cells:
                if cell.name in asked:
                    pace.begin(cell.name)
                    self._note(self._asked(cell, full, pace))
                    pace.end()
            by_name = {cell.name: cell for cell in cells}
            for name in timed:
                pace.begin(name)
                if self._waits(name):
                    self._note(self._timed(by_name.get(name), full, pace))
                if name != UNPRUNED:
                    self.shelf.drop(name)
                pace.end()
        except KeyboardInterrupt:
            return True
        return False

    def _waits(self, name: str) -> bool:
        """Whether a row has no times yet."""
        row = self.state.done(name)
        return row is None or not is_timed(row)

    def _asking(self, name: str) -> Job:
        """What asks a bundle the items."""
        return bundle_job(self.shelf.path(name), self.settings, self.accuracy).model_copy(update={"latency": None})

    def row(self, name: str) -> Row:
        """The row of that name, or an empty one."""
        found = self.state.done(name)
        if found is not None:
            return found
        return without_bundle(name, self.request.recipe.model, self.request.recipe.format)

    def cell_row(self, cell: Cell) -> Row:
        """The row of a cell with what is asked for now; why there are no figures, if there are none."""
        row = self.row(cell.name)
        pruning = row.pruning or self._pruning(cell)
        pruning = pruning.model_copy(update={"keep_percent": list(cell.percents)})
        reason = cell.reason or row.reason
        return row.model_copy(update={"pruning": pruning, "reason": reason})

    def _unpruned(self, pace: Pace) -> Row:
        """The row that everything else is compared with.

        Raises:
            EdgeVLMError: it cannot be exported or measured.
        """
        known = self.state.done(UNPRUNED)
        if known is not None:
            return known
        pace.begin(UNPRUNED)
        bundle = self.shelf.unpruned(None, _exporting(pace))
        row = self._ask(bundle, UNPRUNED, self.settings.vision_engine, {}, pace)
        if row.status != "ok":
            what = f"the unpruned model cannot be measured: {row.reason}"
            raise EdgeVLMError(what, str(bundle.path), "mend it, or take another engine")
        self._note(row)
        pace.end()
        return row

    def _asked(self, cell: Cell, full: Row, pace: Pace) -> Row:
        """The row of a cell with its accuracy, whatever becomes of it."""
        pruning = self._pruning(cell)
        like = self.shelf.unpruned(full, _exporting(pace))
        try:
            bundle = self.shelf.pruned(cell, None, like, _exporting(pace))
        # Whatever tracing and conversion raise, and they raise much, costs this cell and not the study.
        except Exception as error:
            return self._unmade(cell, error).model_copy(update={"pruning": pruning})
        layers = layer_tokens(bundle.spec)
        pruning = pruning.model_copy(update={"layer_tokens": layers})
        if cell.method.chooses:
            kept = bundle.spec.vision.image_tokens if layers is None else layers[-1]
            pruning = pruning.model_copy(update={"tokens": kept})
        row = self._ask(bundle, cell.name, _engine_of(full, self.settings), {UNPRUNED: self.unpruned_answers}, pace)
        if row.status != "ok":
            self.shelf.drop(cell.name)
        return row.model_copy(update={"pruning": pruning})

    def _timed(self, cell: Cell | None, full: Row, pace: Pace) -> Row:
        """The row of a cell, or of the unpruned bundle, with its times."""
        unpruned = self.shelf.unpruned(full, _exporting(pace))
        settings = self.settings.model_copy(update={"vision_engine": _engine_of(full, self.settings)})
        if cell is None:
            return time_unpruned(full, unpruned, settings, pace, self.worker)
        row = self.row(cell.name)
        try:
            bundle = self.shelf.pruned(cell, row, unpruned, _exporting(pace))
        # Made again, since it was gone; its accuracy stays, whatever is raised now.
        except Exception as error:
            return not_timed(row, _said(error))
        return time_cell(row, bundle, unpruned, settings, pace, self.worker)

    def _unmade(self, cell: Cell, error: Exception) -> Row:
        """The row of a cell without a bundle: left out if the format cannot hold the method, else failed."""
        row = without_bundle(cell.name, self.request.recipe.model, self.request.recipe.format)
        reason = _said(error)
        if isinstance(error, UnsupportedError):
            return row.model_copy(update={"reason": reason})
        return row.model_copy(update={"status": "failed", "failed_stage": "export", "reason": reason})

    def _ask(self, bundle: Bundle, name: str, engine: str, answers: dict[str, list[Prediction]], pace: Pace) -> Row:
        """The row of a bundle with its accuracy."""
        settings = self.settings.model_copy(update={"vision_engine": engine})
        job = self._asking(name).model_copy(update={"vision_engine": engine})
        first = name == UNPRUNED
        work = Work(name, job, bundle, baseline="" if first else UNPRUNED, reason=IS_BASELINE if first else "")
        return measure_row(
            describe(work), work, settings, self.here, pace, self.worker, dict(answers), self.request.out
        )

    def _pruning(self, cell: Cell) -> Pruning:
        return Pruning(
            method=cell.method.name,
            options=dict(cell.method.options),
            keep_percent=list(cell.percents),
            tokens=cell.tokens,
            export=export_command(self.shelf.recipe(cell), cell.flag, self.shelf.path(cell.name).name),
            method_ms=None,
            against=[],
        )

    def _note(self, row: Row) -> None:
        """Add a row to the state; Ctrl-C waits for it."""
        with interrupts() as interrupted:
            self.state.add(row, self.here.git_commit)
        if interrupted.is_set():
            raise KeyboardInterrupt


def export_command(recipe: Recipe, flag: str, out: str) -> list[str]:
    """The command that makes a cell's bundle without a study."""
    given = [(name, getattr(recipe, name)) for name in _FLAGS]
    flags = [part for name, value in given if value is not None for part in (f"--{name.replace('_', '-')}", str(value))]
    calibration = [] if recipe.calibration is None else ["--calibrate", recipe.calibration.source]
    return ["edgevlm", "export", recipe.model, *flags, "--prune-tokens", flag, *calibration, "-o", out]


def _said(error: Exception) -> str:
    """What went wrong, in a line."""
    said = error.what if isinstance(error, EdgeVLMError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())


def layer_tokens(spec: ModelSpec) -> list[int] | None:
    """Tokens of an image in each layer of a decoder that drops some on the way; None where all have the same."""
    drop = spec.decoder.token_drop
    if drop is None:
        return None
    counts = [drop.image_tokens, *(stage.keep for stage in drop.stages)]
    return [counts[drop.part(layer)] for layer in range(spec.decoder.num_hidden_layers)]


def _exporting(pace: Pace) -> Progress:
    """An export's progress within a study's."""
    return lambda _done, _total, what: pace.say(f"export: {what}")


def _engine_of(full: Row, settings: Settings) -> str:
    """The vision engine that the unpruned model got: all cells get the same, so that their times compare."""
    chosen = full.vision_engine.name.split()[0] if full.vision_engine is not None else ""
    return chosen if chosen in VISION_ENGINES else settings.vision_engine


def _with_comparisons(rows: list[Row], state: State, settings: Settings) -> list[Row]:
    """The rows, each cell paired with the plain choices of the same share."""
    plain = [row for row in rows if row.pruning and row.pruning.method in PLAIN and row.accuracy is not None]
    answers = {row.name: state.answers(row) for row in plain}
    found = []
    for row in rows:
        if row.pruning is None or row.accuracy is None:
            found.append(row)
            continue
        asked = set(row.pruning.keep_percent)
        own = state.answers(row)
        against: list[Paired] = [
            compare(own, answers[other.name], other.name, settings.margin, settings.seed)
            for other in plain
            if other.name != row.name and other.pruning and asked & set(other.pruning.keep_percent)
        ]
        found.append(row.model_copy(update={"pruning": row.pruning.model_copy(update={"against": against})}))
    return found
