"""Choosing from many: which rows of the tables that `prefiqs score` writes are kept, such as the best of each person.

tables.py reads the tables. choose.py finds the rows, in DuckDB, which sorts more than memory holds; groups.py has near
duplicates and templates. output.py writes the rows, and select.py has the steps in order.
"""
