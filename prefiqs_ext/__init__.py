"""Face image quality from pruning: one shared pass gives the embedding and how far pruning moves it.

>>> out = prefiqs_ext.score(crops)  # uint8 [N, 3, 112, 112], RGB, aligned
>>> out.score.shape, out.embedding.shape  # HIGHER is better
(torch.Size([40]), torch.Size([40, 128]))

The names below are imported when they are first used: `import prefiqs_ext` alone imports no torch. The file
`__init__.pyi` beside this one lists them.
"""

import lazy_loader

from prefiqs_ext.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
