"""The calibrated score: scale.py computes it, fit.py has the rule by which it is fitted, calibrate.py runs the network.

copies.py makes the degraded copies of faces that both the fit and the choice of a pruning (analysis) go by.
"""
