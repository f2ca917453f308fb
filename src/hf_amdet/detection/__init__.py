"""AMDET (arXiv 2512.00343) in plain torch: no Hub, no files, no printing.

Read in this order: `objective` (what is minimised), `inversion` (how), `judges` (how a recovered
trigger behaves), `landscape` (the natural-backdoor filter), `verdict` (what follows), `detect`.
"""
