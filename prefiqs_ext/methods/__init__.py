"""Training-free face image quality methods, all behind one protocol: :class:`Method`.

Each method is one class. ``list_methods()`` gives the names, ``create(name, network, preset)`` makes one. Neither
importing this package nor listing the names imports torch.

>>> prefiqs_ext.methods.list_methods()[:3]
('prefiqs', 'prefiqs-recalibrated', 'calibrated')
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
