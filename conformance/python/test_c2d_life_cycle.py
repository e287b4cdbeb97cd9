"""The life of a message to a device through the SDKs alone.

azure-iothub sends and hears what became of it; azure-iot-device-http is the one SDK here that can abandon
and reject. Over MQTT the SDKs can do neither (they refuse it locally), so paho-mqtt publishes the verdicts
that this hub offers there. Purging is a call of azure-iot-hub's; azure-iothub has none.
"""

import re
import time
import uuid

import pytest
from azure.iot.hub import IoTHubRegistryManager

from clients import (
    RECEIVERS,
    SENDERS,
    WAIT_SECONDS_MAX,
    NodeFeedback,
    NodePoller,
    NodeSender,
    Paho,
    SendFailed,
)
from hub import millis
from service import Feedback, message_count, send

ACKS = ("none", "positive", "negative", "full")
ENDS = ("Success", "Rejected", "DeliveryCountExceeded", "Expired", "Purged")


def owes(end, ack):
    """Whether a sender who asked for `ack` is told of `end`."""
    return ack in ("full", "positive" if end == "Success" else "negative")


@pytest.fixture
def hub(hub_of_module):
    return hub_of_module


@pytest.fixture
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.service_string())


@pytest.fixture
def opened():
    """Registers clients to be closed when the test is over."""
    clients = []

    def opening(client):
        clients.append(client)
        return client

    yield opening
    for client in reversed(clients):
        client.close()


@pytest.fixture
def sender(hub, opened):
    return opened(NodeSender(hub, "amqp"))


def until_empty(hub, device):
    """Waits until the device's queue is."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while message_count(hub, device):
        assert time.monotonic() < deadline, hub.log()[-2000:]


@pytest.mark.parametrize("sender_name", SENDERS)
def test_each_end_is_told_to_those_who_asked(hub, registry, opened, sender_name):
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
    sender = opened(SENDERS[sender_name](hub))
    over = "amqp-ws" if sender_name.endswith("-ws") else "amqp"
    feedback = opened(NodeFeedback(hub, device, over))
    poller = opened(NodePoller(hub, device))
    started = hub.now()

    def send_one_for_each_ack(end, **system):
        for ack in ACKS:
            sender.send(device.id, b"x", ack=ack, messageId=f"{end} {ack}", **system)

    send_one_for_each_ack("Success")
    for ack in ACKS:
        message = poller.poll()
        assert message["messageId"] == f"Success {ack}"
        assert poller.settle("complete", message) is None

    send_one_for_each_ack("Rejected")
    for _ in ACKS:
        assert poller.settle("reject", poller.poll()) is None

    send_one_for_each_ack("DeliveryCountExceeded")
    for ack in ACKS:
        for _ in range(10):
            message = poller.poll()
            # It keeps its place before the others.
            assert message["messageId"] == f"DeliveryCountExceeded {ack}"
            assert poller.settle("abandon", message) is None

    send_one_for_each_ack("Expired", expiryTimeUtc=hub.now() + 30_000)
    hub.advance(31)
    until_empty(hub, device)

    send_one_for_each_ack("Purged")
    purged = registry.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(device.id)
    assert purged.total_messages_purged == len(ACKS)

    # A poll brings this one and none of those before it; its record comes after all of theirs.
    sender.send(device.id, b"x", ack="full", messageId="last")
    assert poller.next()["messageId"] == "last"
    records = feedback.until("last")
    owed = {f"{end} {ack}": end for end in ENDS for ack in ACKS if owes(end, ack)} | {"last": "Success"}
    assert {record["originalMessageId"]: record["statusCode"] for record in records} == owed
    assert len(records) == len(owed)
    finished = hub.now()
    generation = registry.get_device(device.id).generation_id
    for record in records:
        assert record["description"] == record["statusCode"]
        assert record["deviceGenerationId"] == generation
        assert started <= millis(record["enqueuedTimeUtc"]) <= finished


def test_a_lock_that_ends_gives_the_message_back(hub, sender, opened):
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
    poller = opened(NodePoller(hub, device))
    # As often as would be too often if it counted.
    sender.send(device.id, b"x", ack="full", messageId="locked")
    for round_number in range(11):
        held = poller.poll()
        assert held["messageId"] == "locked"
        hub.advance(59)
        sender.send(device.id, b"x", messageId=f"meanwhile {round_number}")
        assert poller.next()["messageId"] == f"meanwhile {round_number}"
        hub.advance(2)
    again = poller.poll()
    assert again["lockToken"] != held["lockToken"]
    for what in ("complete", "abandon", "reject"):
        assert poller.settle(what, held) == 412
    assert poller.settle("complete", again) is None
    assert poller.settle("complete", again) == 412
    sender.send(device.id, b"x", ack="full", messageId="after the locks")
    poller.next()
    records = opened(NodeFeedback(hub, device)).until("after the locks")
    outcomes = [(record["originalMessageId"], record["statusCode"]) for record in records]
    assert outcomes == [("locked", "Success"), ("after the locks", "Success")]


@pytest.mark.parametrize("receiver_name", RECEIVERS)
def test_what_waits_for_a_device_that_is_away(hub, sender, opened, receiver_name):
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
    # Whether a device can be reached: a short expiry, and feedback about it.
    sender.send(device.id, b"?", ack="negative", messageId="ping", expiryTimeUtc=hub.now() + 30_000)
    for number in range(49):
        sender.send(device.id, str(number).encode())
    with pytest.raises(SendFailed, match="^DeviceMaximumQueueDepthExceededError$"):
        sender.send(device.id, b"the 51st")
    hub.advance(31)
    # Told while the device is still away.
    (record,) = opened(NodeFeedback(hub, device)).until("ping")
    assert record["statusCode"] == "Expired"
    sender.send(device.id, b"49")
    with pytest.raises(SendFailed, match="^DeviceMaximumQueueDepthExceededError$"):
        sender.send(device.id, b"the 51st")
    receiver = opened(RECEIVERS[receiver_name](hub, device))
    assert [receiver.next()["body"] for _ in range(50)] == [str(n).encode() for n in range(50)]
    until_empty(hub, device)


@pytest.mark.parametrize("receiver_name", RECEIVERS)
def test_disabled_deleted_and_created_anew(hub, registry, sender, opened, receiver_name):
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
    keys = registry.get_device(device.id).authentication.symmetric_key
    sender.send(device.id, b"before", ack="full", messageId="before")

    def set_status(status):
        etag = registry.get_device(device.id).etag
        registry.update_device_with_sas(device.id, etag, keys.primary_key, keys.secondary_key, status)

    set_status("disabled")
    with pytest.raises(SendFailed, match="^DeviceNotFoundError$"):
        sender.send(device.id, b"meanwhile")
    if receiver_name == "node-http":
        poller = opened(NodePoller(hub, device))
        assert poller.ask()["status"] == 401
    set_status("enabled")
    receiver = RECEIVERS[receiver_name](hub, device)
    assert receiver.next()["body"] == b"before"
    receiver.close()

    # What waits for the old device is gone with it, and nobody is told of it.
    sender.send(device.id, b"for the old one", ack="full", messageId="old")
    registry.delete_device(device.id)
    with pytest.raises(SendFailed, match="^DeviceNotFoundError$"):
        sender.send(device.id, b"for nobody")
    registry.create_device_with_sas(device.id, keys.primary_key, keys.secondary_key, "enabled")
    sender.send(device.id, b"for the new one", ack="full", messageId="new")
    receiver = opened(RECEIVERS[receiver_name](hub, device))
    assert receiver.next()["body"] == b"for the new one"
    until_empty(hub, device)
    for record in opened(NodeFeedback(hub, device)).until("new"):
        # Deleting a device drops what is owed about it and not yet sent, so the first may be missing.
        assert record["originalMessageId"] in ("before", "new")
        assert record["statusCode"] == "Success"
    assert record["deviceGenerationId"] == registry.get_device(device.id).generation_id


class Judging:
    """A device with paho-mqtt that says what a test wants of its messages before it acknowledges them."""

    def __init__(self, hub, device):
        self.hub = hub
        # The longest keep-alive, so that moving the clock is not taken for silence.
        self.paho = Paho(hub, device, keepalive=1740)
        self.verdicts = []
        self.paho.on_message = self._judge
        self.paho.receive_commands()

    def _judge(self, message):
        # paho acknowledges behind this; the hub must then pass over it.
        verdict = self.verdicts.pop(0)
        if verdict:
            self.paho.client.publish(f"$fieldpost/c2d/{verdict.format(pid=message.mid)}", b"why not", 1)

    def next(self):
        return self.paho.messages.get(timeout=WAIT_SECONDS_MAX)

    def unmatched(self):
        """How many verdicts matched nothing so far."""
        line = re.search(r"^fieldpost_c2d_unmatched_total (\d+)$", self.hub.metrics(), re.M)
        return int(line[1]) if line else 0

    def close(self):
        self.paho.close()


@pytest.fixture
def judging(own_hub, opened):
    # A hub of its own, whose metrics nobody else changes.
    return opened(Judging(own_hub, own_hub.create_device("judge")))


def test_reject_over_mqtt(own_hub, judging):
    feedback = Feedback(own_hub)
    by_id, by_packet = "a b/c+d&=\u00e9", "by packet"
    judging.verdicts = ["reject/?$mid=a%20b%2Fc%2Bd%26%3D%C3%A9", "reject/?$pid={pid}", None]
    for message_id in (by_id, by_packet, "taken"):
        send(own_hub, "judge", b"x", id=message_id, properties={"iothub-ack": "full"})
        judging.next()
    outcomes = {name: feedback.of(name)["statusCode"] for name in (by_id, by_packet, "taken")}
    assert outcomes == {by_id: "Rejected", by_packet: "Rejected", "taken": "Success"}
    letters = own_hub.admin("GET", "/api/c2d/dead-letters?deviceId=judge")["deadLetters"]
    assert [(letter["messageId"], letter["cause"]) for letter in letters] == [
        (by_id, "Rejected"),
        (by_packet, "Rejected"),
    ]
    # The acknowledgements that followed completed nothing and offended nobody.
    assert len(feedback.records) == 3
    assert judging.unmatched() == 0
    assert not judging.paho.gone.is_set()


def test_abandon_over_mqtt_up_to_the_limit(own_hub, judging):
    feedback = Feedback(own_hub)
    judging.verdicts = ["abandon/?$mid=again", None] + ["abandon/?$pid={pid}"] * 10 + [None]
    for message_id, deliveries in (("again", 2), ("too often", 10), ("last", 1)):
        send(own_hub, "judge", b"x", id=message_id, properties={"iothub-ack": "full"})
        came = [judging.next() for _ in range(deliveries)]
        # Each is a new delivery, not the old one sent again.
        assert len({message.mid for message in came}) == deliveries
        assert not any(message.dup for message in came)
    outcomes = {name: feedback.of(name)["statusCode"] for name in ("last", "again", "too often")}
    assert outcomes == {"again": "Success", "too often": "DeliveryCountExceeded", "last": "Success"}
    assert len(feedback.records) == 3
    assert judging.unmatched() == 0


def test_a_verdict_over_mqtt_that_matches_nothing_is_acknowledged_and_counted(own_hub, judging):
    feedback = Feedback(own_hub)
    judging.verdicts = ["reject/?$mid=another", "abandon/?$pid=0", "reject/", None]
    for number in range(4):
        send(own_hub, "judge", b"x", id=f"m{number}", properties={"iothub-ack": "full"})
        judging.next()
    assert {feedback.of(f"m{number}")["statusCode"] for number in range(4)} == {"Success"}
    assert judging.unmatched() == 3
    # What is acknowledged is beyond a verdict.
    judging.paho.publish("$fieldpost/c2d/reject/?$mid=m3")
    assert judging.paho.published.wait(WAIT_SECONDS_MAX)
    assert judging.unmatched() == 4
    assert not judging.paho.gone.is_set()
