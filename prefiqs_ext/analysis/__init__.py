"""What pruning does to a network's scores on given images, and what it costs. The commands' work is in runner.py."""
