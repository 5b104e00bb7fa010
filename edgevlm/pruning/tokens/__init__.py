"""Fewer visual tokens, inside the exported vision or decoder graph: one method a file.

To add one, write a subclass of `Reducer` (or `Selector`, or `DecoderMethod`) in a file of its own and put it into
`REDUCERS`; its options, refusals, listing and export follow. docs/pruning.md says how. `CHOOSERS` choose the count for
one of them.
"""

from __future__ import annotations

from typing import Any

from edgevlm.pruning.tokens.aim_merge import AimMerge
from edgevlm.pruning.tokens.attention import Attention
from edgevlm.pruning.tokens.cdpruner import CdPruner
from edgevlm.pruning.tokens.chooser import Chooser
from edgevlm.pruning.tokens.cls_similarity import ClsSimilarity
from edgevlm.pruning.tokens.cluster import Cluster
from edgevlm.pruning.tokens.dart import Dart
from edgevlm.pruning.tokens.divprune import DivPrune
from edgevlm.pruning.tokens.fastervlm import FasterVlm
from edgevlm.pruning.tokens.fastv import FastV
from edgevlm.pruning.tokens.fopru import FoPru
from edgevlm.pruning.tokens.globalcom2 import GlobalCom2
from edgevlm.pruning.tokens.gprune import GPrune
from edgevlm.pruning.tokens.gsearch import GSearch
from edgevlm.pruning.tokens.hired import HiRed
from edgevlm.pruning.tokens.pool import Pool
from edgevlm.pruning.tokens.prumerge import PruMerge
from edgevlm.pruning.tokens.pyramiddrop import PyramidDrop
from edgevlm.pruning.tokens.random_tokens import RandomTokens
from edgevlm.pruning.tokens.recoverable import Recoverable
from edgevlm.pruning.tokens.reducer import Method
from edgevlm.pruning.tokens.resolution import Resolution
from edgevlm.pruning.tokens.sms import Sms
from edgevlm.pruning.tokens.tome import ToMe
from edgevlm.pruning.tokens.uniform import Uniform
from edgevlm.pruning.tokens.visionzip import VisionZip
from edgevlm.pruning.tokens.vtc_cls import VtcCls

#: As they are listed: baselines, by attention, by likeness, merging, by the question, inside the decoder.
REDUCERS: dict[str, type[Method[Any]]] = {
    reducer.name: reducer
    for reducer in (
        *(Resolution, Uniform, RandomTokens, Pool),
        *(FasterVlm, VtcCls, ClsSimilarity, FoPru, HiRed, GlobalCom2, Attention),
        *(DivPrune, GPrune),
        *(VisionZip, PruMerge, ToMe, AimMerge, Cluster),
        *(CdPruner, Recoverable),
        *(FastV, PyramidDrop, Dart),
    )
}

#: Methods that choose K for one of these, from calibration images.
CHOOSERS: dict[str, type[Chooser[Any]]] = {chooser.name: chooser for chooser in (Sms, GSearch)}
