"""A real hub for unmodified SDKs: the release binary, TLS, the fixed ports, an address of its own."""

import json
import os
import uuid
from contextlib import contextmanager

import pytest

from hostile import MEMORY_BYTES_MAX, Watch, check_serves, memory
from hub import Device, Hub


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


@pytest.fixture(scope="module")
def keeping_to_the_rules(hub_of_module):
    """A device that must be served whatever others do."""
    return hub_of_module.create_device("keeping-to-the-rules")


@pytest.fixture
def watch(hub_of_module, keeping_to_the_rules):
    """Fails a test that leaves the hub dead, deaf, swollen or talkative."""
    if memory(hub_of_module) > MEMORY_BYTES_MAX:
        # What the process keeps of an earlier test would hide what this one takes.
        hub_of_module.stop()
        hub_of_module.start()
    # So that what the hub makes once is there before memory is compared.
    check_serves(hub_of_module, keeping_to_the_rules)
    with Watch(hub_of_module, keeping_to_the_rules) as watch:
        yield watch


@pytest.fixture
def hostile(hub_of_module, watch):
    """A device of its own for each test whose owner means no good."""
    return hub_of_module.create_device(f"hostile-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def fleet(hub_of_module, tmp_path):
    """Makes many devices at once, for which a policy's token has to speak."""

    def make(count):
        ids = [f"fleet-{uuid.uuid4().hex[:8]}-{number}" for number in range(count)]
        path = tmp_path / "fleet.ndjson"
        lines = (json.dumps({"id": id, "importMode": "create"}) + "\n" for id in ids)
        path.write_text("".join(lines))
        hub_of_module.run("device", "import", str(path))
        return [Device(id, "") for id in ids]

    return make
