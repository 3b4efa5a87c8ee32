"""Face-recognition networks: loading them, the known weights, and presets.

>>> network, preset = prefiqs_ext.models.load("sface")  # the weights are fetched at first use
>>> network(preset.normalize()(crops)).shape
torch.Size([40, 128])
>>> network = prefiqs_ext.models.iresnet50()  # random weights, the usual names in its state dict

:func:`load` also reads files: PyTorch checkpoints of the usual families, .safetensors, .onnx, and dlib's .dat. The
names are imported when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
