"""Does a quality predict recognition errors? Error-versus-discard curves, their areas, and intervals for them.

Qualities here are always HIGHER = better: negate a distance first. `edc` states the rules of the curves and their
sources. Importing this package does not import torch; the names below are loaded when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
