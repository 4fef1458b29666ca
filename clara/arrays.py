"""Array types that several packages share."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
NO_ROW = -1
"""Row id where a search returns fewer rows than were requested."""
