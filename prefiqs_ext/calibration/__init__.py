"""The calibrated score: scale.py computes it, fit.py has the rule, copies.py degrades, calibrate.py runs a network."""
