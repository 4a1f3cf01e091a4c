"""What models answer. Apart from the evaluation, whose models take seconds to import."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_ANSWER = -1
"""Stands for the answer to an image that cannot be decoded."""

Answers = dict[str, NDArray[np.int64]]
"""Task -> class that each image is taken for, (images,); NO_ANSWER for one that cannot be decoded."""
