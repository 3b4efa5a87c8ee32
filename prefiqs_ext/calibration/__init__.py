"""The calibrated score: scale.py computes it, fit.py has the rule by which it is fitted, calibrate.py runs the network."""
