"""A real hub for unmodified SDKs: the release binary, TLS, the fixed ports, an address of its own."""

import os
import uuid

import pytest

from hub import Hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """One hub for all tests that do not stop or reconfigure it."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    # The SDKs for services take their trust from here and from nowhere else.
    os.environ["REQUESTS_CA_BUNDLE"] = str(hub.ca)
    os.environ["SSL_CERT_FILE"] = str(hub.ca)
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def own_hub(tmp_path):
    """A hub for one test, free to be stopped, killed or reconfigured."""
    hub = Hub(tmp_path)
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def device(hub):
    """A device of its own for each test."""
    return hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
