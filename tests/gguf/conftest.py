"""Makes the helpers of this folder (hostile, mutate) importable under any import mode of pytest."""

import os
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real models and vocabularies; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("KVANT_SHARED", _HERE.parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no real files: set KVANT_SHARED to the folder that holds data/ and models/")
    return folder
