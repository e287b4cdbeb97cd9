"""A real hub for unmodified SDKs: the release binary, TLS, the fixed ports, an address of its own."""

import os
import uuid
from contextlib import contextmanager

import pytest

from hub import Hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """One hub for all tests that do not stop or reconfigure it, nor move its clock."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    hub.start()
    with trusted(hub):
        yield hub
    hub.stop()


@pytest.fixture(scope="module")
def hub_of_module(tmp_path_factory):
    """A hub for the tests of one file that move its clock."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    hub.start()
    with trusted(hub):
        yield hub
    hub.stop()


@contextmanager
def trusted(hub):
    """The SDKs for services take their trust from the environment and from nowhere else."""
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(hub.ca) for name in names})
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


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
