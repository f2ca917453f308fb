"""Judges detectors on the zoo: rows of results, baselines, splits, metrics, tables and plots.

`rows` are the facts, `detectors` and `baselines` make them, `splits` says what a threshold may be
fitted on, `decisions` and `metrics` turn rows into figures, `report` writes them down.
"""
