"""The forecast for this machine against what it then does: a small model, and one of full size."""

from pathlib import Path
from statistics import median
from typing import Any

import pytest

import edgevlm
from edgevlm.answer import Answer
from edgevlm.bench.images import photo_like
from edgevlm.bench.suite.full_size import Exported, export
from edgevlm.bench.suite.verdict import tell
from edgevlm.pipeline.estimate import estimate
from edgevlm.pipeline.planner import Question
from edgevlm.recipe import Recipe
from edgevlm.targets.cpu_speed import CpuSpeed, measure_cpu
from edgevlm.targets.host import cpu_profile
from edgevlm.targets.profile import Format

ROUNDS, TOKENS = 5, 33
WIDTH, HEIGHT = 1024, 768
NANO = "zoo:nano-fastvlm"


@pytest.fixture(scope="module")
def speed() -> CpuSpeed:
    """This machine, measured in the same minutes as the answers."""
    return measure_cpu()


@pytest.mark.parametrize("format_", ["onnx", "gguf"])
@pytest.mark.parametrize("size", ["nano", "full"])
def test_forecast(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    checkpoint: Path,
    exported: Exported,
    speed: CpuSpeed,
    size: str,
    format_: Format,
) -> None:
    model = NANO if size == "nano" else str(checkpoint)
    recipe = Recipe(model=model, format=format_, precision="int4")
    bundle = export(recipe, tmp_path / "out").bundle if size == "nano" else exported(format_, "int4").bundle
    answers: list[Answer] = []
    with edgevlm.load(bundle) as session:

        def answer() -> None:
            photo = photo_like(0, len(answers), WIDTH, HEIGHT)
            answers.append(session.generate(photo, "Describe it", max_tokens=TOKENS, ignore_eos=True, reuse=False))

        benchmark.pedantic(answer, rounds=ROUNDS, warmup_rounds=1)
    stats = [each.stats for each in answers[1:]]
    profile, image = cpu_profile(speed), (WIDTH, HEIGHT)
    image_tokens = estimate(recipe, profile, Question(*image, answer_tokens=TOKENS)).result.work.image_tokens
    text_tokens = stats[0].prompt_tokens - image_tokens
    expected = estimate(recipe, profile, Question(*image, text_tokens, TOKENS)).result.forecast
    rows = (
        ("vision ms", expected.vision_ms, median(each.vision_ms for each in stats)),
        ("prefill ms", expected.prefill_ms, median(each.prefill_ms for each in stats)),
        ("tokens/s", expected.tokens_per_second, 1000 / median(gap for each in stats for gap in each.token_gaps_ms)),
    )
    for name, forecast, measured in rows:
        figure = f"forecast {forecast:.4g}, measured {measured:.4g} ({forecast / measured - 1:+.0%})"
        tell(capsys, benchmark, f"{Path(model).name} {format_}, {name}", figure, "no bound", met=True)
