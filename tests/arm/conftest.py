"""The emulated build that the tests of this folder share, and each of its ISAs in turn."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The client is importable under any import mode of pytest.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from codec_client import ISAS, Server, build


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server(build())
    yield server
    server.close()


@pytest.fixture(params=ISAS)
def arm(server: Server, request: pytest.FixtureRequest) -> Server:
    assert server.use(request.param) == 0
    return server
