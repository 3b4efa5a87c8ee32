"""How a dual graph runs: in kept buffers, tiled, in half precision, as CUDA graphs."""
