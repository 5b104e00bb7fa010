"""The vision tower in static int8: ranges from calibration images, smoothing, and what stays in float.

`probe` computes an encoder whose products can be watched or rounded, `layers` says which they are and what makes their
inputs, `ranges` and `smoothing` choose numbers, `calibrate` puts a `StaticPlan` together, and an exporter writes it.
"""

from edgevlm.quant.vision.calibrate import calibrated, plan_vision
from edgevlm.quant.vision.plan import StaticLayer, StaticPlan

__all__ = ["StaticLayer", "StaticPlan", "calibrated", "plan_vision"]
