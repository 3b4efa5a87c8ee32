"""The conversion of a model into a dual graph; dualize.py has its steps in order."""
