"""Studies: many exports of one model, each measured like any bundle, in one report.

Host half. In: a model and a grid of methods and counts. Out: a `Report` with a `Study`, and state in the output folder
from which a study that was stopped goes on.
"""
