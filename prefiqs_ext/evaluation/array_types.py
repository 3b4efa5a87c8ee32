"""Short names for the types of arrays that the evaluation takes."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32 | np.float64]
Integers: TypeAlias = NDArray[np.int32 | np.int64]
