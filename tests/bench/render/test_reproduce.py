"""A report states what a reader needs to repeat it, and says so where the system does not tell."""

import shlex

from edgevlm.bench.render.reproduce import facts
from edgevlm.bench.report import Report


def test_command_hashes_and_engines_are_stated(swept: tuple[Report, object]) -> None:
    report = swept[0]
    stated = dict(facts(report))
    assert shlex.split(stated["Command"]) == report.settings.command_line
    for row in report.rows:
        for file in row.files:
            assert not file.parameters or stated[f"{row.name}: {file.path}"] == f"sha256 {file.sha256}"
        if row.accuracy is not None:
            assert stated[f"{row.name}: predictions"] == f"sha256 {row.accuracy.predictions_sha256}"
        if row.vision_engine is not None:
            assert stated[f"{row.name}: vision engine"] == "fake 1.0 (kind vision)"
    assert stated["Accuracy plan"].startswith("scenes, split test, 30 items, scorer exact")


def test_what_the_system_does_not_tell_is_called_unknown(swept: tuple[Report, object]) -> None:
    report = swept[0]
    unknown: dict[str, object] = {
        "git_commit": None,
        "cpu_features": [],
        "physical_cores": None,
        "logical_cores": None,
        "usable_cores": None,
        "governor": None,
        "load_average": None,
    }
    bare = report.model_copy(
        update={
            "environment": report.environment.model_copy(update=unknown),
            "settings": report.settings.model_copy(update={"task": None, "threads": 0}),
            "rows": [],
        }
    )
    stated = dict(facts(bare))
    assert stated["CPU"].endswith("; ? physical, ? logical")
    assert stated["CPU features"] == stated["Load average before"] == "unknown"
    assert stated["Governor"] == "not exposed by this system"
    assert stated["Threads"] == "the engines' own choice"
    assert "(source" not in stated["EdgeVLM"]
    assert "Accuracy plan" not in stated
