"""The benchmarks by name. Each is one module that reads the files as their authors publish them."""

from __future__ import annotations

from edgevlm.bench.accuracy.sets import (
    chartqa,
    docvqa,
    gqa,
    llava,
    mmbench,
    mme,
    mmmu,
    mmvet,
    naturalbench,
    ocrbench,
    pope,
    scienceqa,
    seedbench,
    textvqa,
    vqav2,
)
from edgevlm.bench.accuracy.sets.base import DataSet

SETS: dict[str, DataSet] = {
    module.SET.name: module.SET
    for module in (
        *(vqav2, textvqa, gqa, pope, mme, mmbench, scienceqa, mmmu, seedbench, ocrbench, naturalbench),
        *(chartqa, docvqa, mmvet, llava),
    )
}
