"""The scorers by their ids. Scores of one model differ by points between them, so a report names the one it used."""

from __future__ import annotations

from edgevlm.bench.accuracy.scorers import choice, text, vqa, yes_no
from edgevlm.bench.accuracy.scorers.base import Scorer

SCORERS: dict[str, Scorer] = {
    scorer.id: scorer for scorer in (*text.SCORERS, *vqa.SCORERS, *yes_no.SCORERS, *choice.SCORERS)
}
