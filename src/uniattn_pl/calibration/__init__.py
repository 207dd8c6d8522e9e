"""Calibration: fitting the compensations of a converted model to its original."""

from uniattn_pl.calibration.calibration_report import CalibrationReport, LayerError
from uniattn_pl.calibration.streaming import calibrate

__all__ = ["CalibrationReport", "LayerError", "calibrate"]
