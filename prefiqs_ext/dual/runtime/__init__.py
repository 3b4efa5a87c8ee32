"""How a converted graph runs: in kept buffers, a few images at a time, in half precision, as CUDA graphs."""
