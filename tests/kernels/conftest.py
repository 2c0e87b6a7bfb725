"""Makes the helpers of this folder importable under any import mode of pytest; shared fixtures."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from blocks import normal

import kvant


@pytest.fixture
def table() -> tuple[kvant.QTensor, np.ndarray]:
    """Nine rows of q8_0, and what they decode to."""
    q = kvant.quantize(normal(9, 64), "q8_0")
    return q, q.dequantize()
