"""Inference on a marginal density: starts, MAP, NUTS, one driver."""

from marginalia.infer.driver import judge, options_from, run
from marginalia.infer.options import MAP, NUTS, Auto
from marginalia.infer.result import Mode, Result, Starts

__all__ = ["MAP", "NUTS", "Auto", "Mode", "Result", "Starts", "judge", "options_from", "run"]
