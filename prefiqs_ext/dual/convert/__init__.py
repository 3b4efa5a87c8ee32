"""How a model becomes a graph that gives the pair of embeddings. `dualize.py` lists the steps in order."""
