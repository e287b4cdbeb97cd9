"""A filling disk: messages are held back and never lost, small changes go on, and it goes on by itself."""

import http.client
import os
import threading
import time

import pytest
from azure.iot.device import IoTHubDeviceClient, Message

from hub import Hub
from reading import body_of, events_of

GIB = 1024**3
WAIT_SECONDS_MAX = 60


@pytest.fixture
def hub_near_its_mark(tmp_path):
    """A hub whose mark lies 1 GiB below the free space that there is now."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert free > 3 * GIB, "this test needs 3 GiB of free disk"
    hub = Hub(
        tmp_path,
        settings=[
            f"store.hold_messages_below_bytes={free - GIB}",
            f"store.hold_all_below_bytes={GIB // 8}",
        ],
    )
    hub.start()
    yield hub
    hub.stop()


def is_ready(hub):
    connection = http.client.HTTPConnection(hub.address, 9640, timeout=30)
    connection.request("GET", "/health/ready")
    return connection.getresponse().status == 200


def until(condition, what):
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    wait = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        wait.wait(0.05)


def test_messages_wait_for_space_and_nothing_is_lost(hub_near_its_mark, tmp_path):
    hub = hub_near_its_mark
    device = hub.create_device("patient")
    client = IoTHubDeviceClient.create_from_connection_string(
        device.connection_string, server_verification_cert=hub.ca.read_text()
    )
    client.connect()
    client.send_message(Message("before"))

    filler = tmp_path / "filler"
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * GIB)
    until(lambda: not is_ready(hub), "health turns red")

    acknowledged = threading.Event()

    def send():
        client.send_message(Message("held"))
        acknowledged.set()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    # The registry still changes, on the reserve.
    hub.run("device", "create", "another")
    # A connection that has been held for twenty seconds is closed, without an acknowledgement.
    hub.advance(21)
    assert not acknowledged.wait(2)

    filler.unlink()
    until(lambda: is_ready(hub), "health turns green by itself")
    assert acknowledged.wait(WAIT_SECONDS_MAX), "the message is sent again and acknowledged"
    sender.join()
    client.shutdown()
    bodies = [body_of(event) for event in events_of(hub, device.id, 2)]
    assert bodies[0] == b"before" and set(bodies) == {b"before", b"held"}
    complaints = [line for line in hub.log().splitlines() if " WARN " in line or " ERROR " in line]
    assert 1 <= len(complaints) <= 6, complaints
