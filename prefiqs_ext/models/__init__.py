"""Face recognition networks: how to load them, where the built-in weights come from, and presets.

>>> prefiqs_ext.models.BUILT_IN  # the names that load() takes; it fetches the weights at first use
('sface', 'facexzoo', 'dlib', 'w600k_mbf')
>>> prefiqs_ext.models.PRESETS["magface"].colour
'bgr'

:func:`load` also reads files: PyTorch checkpoints of the usual families, .safetensors, .onnx, and dlib's .dat. The
names of this module are imported when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
