"""Every sender with every receiver: Python and Node.js, over each of their transports."""

import random
import uuid

import pytest

from clients import RAW_RECEIVERS, RECEIVERS, SENDERS, NodeFeedback, SendFailed
from hub import millis

HOUR_MILLIS = 3_600_000
ACKS = ("none", "negative", "positive", "full")

# What the SDKs for services can send. Both: messageId, correlationId, contentType, contentEncoding,
# expiryTimeUtc (as a number of ms; a Date or a text makes azure-iothub itself fail) and
# iothub-ack. Neither: userId, which azure-iot-hub makes an application property and azure-iothub
# leaves out, and a `to` of one's own. azure-iot-hub makes up a message id when it is given none.

#: What each receiver shows of a message besides its body and its application properties.
#:
#: No SDK shows when a message was enqueued, its sequence number or its delivery count: over MQTT
#: they do not exist, and azure-iot-device-http reads neither these headers nor those of the content
#: type, the content encoding and the acknowledgement. azure-iot-device of Python leaves out `to`. The
#: two receivers without an SDK show what the SDKs hide.
SHOWN_OVER_MQTT = {"messageId", "correlationId", "contentType", "contentEncoding", "expiryTimeUtc", "ack"}
SHOWN = {
    "python-mqtt": SHOWN_OVER_MQTT,
    "python-mqtt-ws": SHOWN_OVER_MQTT,
    "node-mqtt": SHOWN_OVER_MQTT | {"to"},
    "node-mqtt-ws": SHOWN_OVER_MQTT | {"to"},
    "node-http": {"messageId", "correlationId", "expiryTimeUtc", "to"},
    "paho": SHOWN_OVER_MQTT | {"to"},
    "https": SHOWN_OVER_MQTT | {"to", "enqueuedTime", "sequenceNumber", "deliveryCount"},
}
ALL = set.union(*SHOWN.values()) | {"userId"}
OVER_HTTPS = ("node-http", "https")


@pytest.fixture
def hub(hub_of_module):
    return hub_of_module


@pytest.fixture
def senders(hub):
    # For one test: the Python SDK is silent between messages, and moving the clock makes that long.
    opened = {name: make(hub) for name, make in SENDERS.items()}
    yield opened
    for sender in opened.values():
        sender.close()


@pytest.mark.parametrize("receiver_name", RECEIVERS | RAW_RECEIVERS)
def test_everything_intact_from_every_sender(hub, senders, receiver_name):
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
    over = "amqp-ws" if receiver_name.endswith("-ws") else "amqp"
    feedback = NodeFeedback(hub, device, over)
    receiver = (RECEIVERS | RAW_RECEIVERS)[receiver_name](hub, device)
    shown = SHOWN[receiver_name]
    chance = random.Random(receiver_name)
    started, last_sequence = hub.now(), 0
    owed = {}
    for sender_name, sender in senders.items():
        for number, ack in enumerate(ACKS):
            # Of both kinds that azure-iothub knows: it sends what looks like a UUID as one.
            message_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
            if number % 2:
                message_id = f"{sender_name}/{receiver_name} {number}&{message_id}=\u00e9"
                if receiver_name in OVER_HTTPS:
                    message_id = message_id.removesuffix("\u00e9")
            body = chance.randbytes(chance.choice([0, 1, 300, 20_000]))
            correlation_id = str(uuid.UUID(int=chance.getrandbits(128), version=4)) if number else "c-0"
            if receiver_name == "node-http":
                # This SDK makes text of every body.
                body = body.hex().encode()
            values = ["a b", "a+b", "50%", "x=y&z", "1"]
            if receiver_name not in OVER_HTTPS:
                # Over HTTPS names are header names, and values hold printable ASCII.
                values += ["\u017elu\u0165ou\u010dk\u00fd k\u016f\u0148", "\U0001f4ee", "a/b?c#d", "%20"]
            properties = {f"name-{n}": chance.choice(values) for n in range(5)}
            before = hub.now()
            system = {
                "messageId": message_id,
                "correlationId": correlation_id,
                "contentType": "application/octet-stream",
                "contentEncoding": "utf-8",
                # It arrives to the millisecond, be it near or far.
                "expiryTimeUtc": before + chance.choice([30_000, 47 * HOUR_MILLIS]) + number,
            }
            sender.send(device.id, body, properties, ack=ack, **system)
            came = receiver.next()
            after = hub.now()
            sent = {"body": body, "properties": properties, "ack": ack} | system
            # `none` is what a message without the property means, and none is sent for it.
            sent["ack"] = None if ack == "none" else ack
            check(came, sent | {"to": f"/devices/{device.id}/messages/devicebound"}, shown)
            if "sequenceNumber" in shown:
                assert before <= came["enqueuedTime"] <= after
                assert came["sequenceNumber"] > last_sequence
                last_sequence = came["sequenceNumber"]
            if ack in ("positive", "full"):
                owed[message_id] = "Success"

        # Nothing set: an hour to live, and no id but one that the sender makes up.
        before = hub.now()
        sender.send(device.id, b"bare")
        came = receiver.next()
        after = hub.now()
        assert before + HOUR_MILLIS <= came["expiryTimeUtc"] <= after + HOUR_MILLIS
        made_up = sender_name.startswith("python")
        assert bool(came["messageId"]) == made_up
        bare = {"body": b"bare", "properties": {}, "to": f"/devices/{device.id}/messages/devicebound"}
        bare |= {name: came[name] for name in ("expiryTimeUtc", "messageId")}
        check(came, bare, shown)
    receiver.close()

    # The last was completed after all others, so that no more will come for them.
    records = feedback.until(message_id)
    finished = hub.now()
    feedback.close()
    assert {record["originalMessageId"]: record["statusCode"] for record in records} == owed
    assert len(records) == len(owed)
    for record in records:
        assert started <= millis(record["enqueuedTimeUtc"]) <= finished


def check(came, sent, shown):
    """That a receiver shows what was sent, and of the rest nothing."""
    expected = {name: sent.get(name) if name in shown else None for name in ALL}
    expected |= {"body": sent["body"], "properties": sent["properties"]}
    if "deliveryCount" in shown:
        expected |= {name: came[name] for name in ("enqueuedTime", "sequenceNumber")}
        expected["deliveryCount"] = 0
    assert {name: came.get(name) for name in expected} == expected


def test_refusals_reach_the_node_sdk_by_their_names(hub, senders):
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")

    def check_refused(expected, device_id=device.id, body=b"x", **system):
        with pytest.raises(SendFailed) as failed:
            senders["node-amqp"].send(device_id, body, **system)
        assert str(failed.value) == expected

    check_refused("DeviceNotFoundError", "nobody-of-this-name")
    check_refused("MessageTooLargeError", body=bytes(66_000))
