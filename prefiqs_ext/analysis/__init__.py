"""What pruning does to a network's scores on given images, what it costs, and which serves best.

The commands' work is in runner.py and tuning_runner.py.
"""
