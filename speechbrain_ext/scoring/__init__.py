"""Trial lists, scores, their normalisation and calibration, metrics and reports."""
