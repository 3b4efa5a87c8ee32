"""The calibrated score: scale.py computes it, fit.py has the rule of its fit, calibrate.py runs the network."""
