"""Messages to devices: sent by the unmodified Python service SDK, received by the device SDK."""

import queue
import random
import time
import uuid

import pytest
from azure.iot.device import IoTHubDeviceClient
from azure.iot.hub import IoTHubRegistryManager

from service import (
    Feedback,
    HttpsDevice,
    Refused,
    change_settings,
    https,
    message_count,
    send,
)
from test_telemetry import NASTY

WAIT_SECONDS_MAX = 30


class Receiving:
    """A device SDK client that puts what it receives into a queue."""

    def __init__(self, hub, device, *, websocket=False):
        self.client = IoTHubDeviceClient.create_from_connection_string(
            device.connection_string,
            server_verification_cert=hub.ca.read_text(),
            websockets=websocket,
            # The longest keep-alive, so that moving the clock is not taken for silence.
            keep_alive=1740,
        )
        self.messages = queue.Queue()
        self.client.connect()
        self.client.on_message_received = self.messages.put

    def next(self):
        return self.messages.get(timeout=WAIT_SECONDS_MAX)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.shutdown()


@pytest.fixture
def back(hub):
    return IoTHubRegistryManager.from_connection_string(hub.service_string())


def own_device(hub):
    return hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=[False, True], ids=["mqtt", "mqtt-ws"])
def websocket(request):
    return request.param


def test_every_body_and_property_reaches_the_device(hub, back, device, websocket):
    chance = random.Random(11)
    expiry = int(time.time() * 1000) + 3_600_000
    with Receiving(hub, device, websocket=websocket) as receiving:
        for number in range(20):
            body = "".join(chance.choices("abcé日🚀 &=%/+", k=chance.choice([0, 1, 50, 3000])))
            properties = {
                f"{index}{chance.choice(NASTY)}": chance.choice(NASTY)
                for index in range(20 if number == 0 else chance.randrange(0, 8))
            }
            back.send_c2d_message(
                device.id,
                body,
                properties
                | {
                    "messageId": f"m-{number}",
                    "correlationId": f"c/{number}&=é",
                    "contentType": "application/json",
                    "contentEncoding": "utf-8",
                    "expiryTimeUtc": expiry,
                },
            )
            message = receiving.next()
            assert message.data == body.encode()
            assert message.message_id == f"m-{number}"
            assert message.correlation_id == f"c/{number}&=é"
            assert message.content_type == "application/json"
            assert message.content_encoding == "utf-8"
            assert message.expiry_time_utc.startswith(
                time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(expiry / 1000))
            )
            assert message.custom_properties == properties


def test_binary_bodies_and_user_ids_sent_as_raw_amqp_reach_the_device(hub, device, websocket):
    with Receiving(hub, device, websocket=websocket) as receiving:
        for size in (0, 1, 256, 65_000):
            body = random.Random(size).randbytes(size)
            send(hub, device.id, body, id=f"b{size}", user_id=b"operator", properties={"n": str(size)})
            message = receiving.next()
            assert message.data == body
            assert message.user_id == "operator"
            assert message.custom_properties == {"n": str(size)}


def test_messages_wait_for_a_device_that_never_was_there_and_keep_their_order(hub, back, device):
    for number in range(50):
        back.send_c2d_message(device.id, str(number))
    assert message_count(hub, device) == 50
    with pytest.raises(Exception, match="send failure"):
        back.send_c2d_message(device.id, "one too many")
    with pytest.raises(Refused) as refused:
        send(hub, device.id, b"one too many")
    assert refused.value.condition == "amqp:resource-limit-exceeded"
    assert "403004" in refused.value.description or "DeviceMaximumQueueDepthExceeded" in (
        refused.value.description
    )
    with Receiving(hub, device) as receiving:
        assert [receiving.next().data for _ in range(50)] == [str(n).encode() for n in range(50)]
        back.send_c2d_message(device.id, "room again")
        assert receiving.next().data == b"room again"


def test_a_session_that_persists_gets_what_came_while_it_was_away(hub, back, device):
    with Receiving(hub, device) as receiving:
        back.send_c2d_message(device.id, "while there")
        assert receiving.next().data == b"while there"
        receiving.client.disconnect()
        for number in range(5):
            back.send_c2d_message(device.id, f"away {number}")
        receiving.client.connect()
        assert [receiving.next().data for _ in range(5)] == [f"away {n}".encode() for n in range(5)]


def test_accepted_messages_survive_the_death_of_the_hub(own_hub):
    device = own_device(own_hub)
    with Receiving(own_hub, device) as receiving:
        receiving.client.disconnect()
        for number in range(10):
            send(own_hub, device.id, str(number).encode())
        own_hub.kill()
        own_hub.start()
        assert message_count(own_hub, device) == 10
        # The SDK subscribes once in its life: the hub must know the session after its own death.
        receiving.client.connect()
        assert [receiving.next().data for _ in range(10)] == [str(n).encode() for n in range(10)]


def test_what_cannot_be_sent_is_refused_by_name(hub, device):
    def check(expected, device_id=device.id, body=b"x", **parts):
        with pytest.raises(Refused) as refused:
            send(hub, device_id, body, **parts)
        assert refused.value.condition == expected, refused.value

    check("amqp:not-found", device_id="nobody")
    check("amqp:link:message-size-exceeded", body=bytes(64 * 1024 + 1))
    check("amqp:not-allowed", to="/not/an/address")
    past, far = time.time() - 60, time.time() + 3 * 24 * 3600
    for expiry in (past, far):
        with pytest.raises(Refused) as refused:
            send(hub, device.id, b"x", expiry_time=expiry)
        assert "InvalidMessageExpiryTime" in refused.value.description
    check_undeliverable = {"control": "a\x07b"}
    with pytest.raises(Refused):
        send(hub, device.id, b"x", properties=check_undeliverable)
    assert message_count(hub, device) == 0
    send(hub, device.id, bytes(64 * 1024 - 200))
    assert message_count(hub, device) == 1


def test_a_disabled_device_gets_nothing_until_it_is_enabled(hub, device):
    send(hub, device.id, b"before")
    hub.run("device", "update", device.id, "--status", "disabled")
    with pytest.raises(Refused) as refused:
        send(hub, device.id, b"meanwhile")
    assert refused.value.condition == "amqp:not-found"
    hub.run("device", "update", device.id, "--status", "enabled")
    with Receiving(hub, device) as receiving:
        assert receiving.next().data == b"before"


def test_a_device_created_anew_sees_nothing_of_the_old_one(hub, device):
    send(hub, device.id, b"for the old one")
    hub.run("device", "delete", device.id)
    device = hub.create_device(device.id)
    assert message_count(hub, device) == 0
    send(hub, device.id, b"for the new one")
    with Receiving(hub, device) as receiving:
        assert receiving.next().data == b"for the new one"


def test_a_device_that_polls_sees_every_header(hub, device):
    expiry = int(time.time()) + 600
    send(
        hub,
        device.id,
        b"hello",
        id="m7",
        correlation_id="c7",
        user_id=b"operator",
        content_type="text/plain",
        content_encoding="utf-8",
        expiry_time=expiry,
        properties={"color": "blue", "iothub-ack": "full", "place": "日本"},
    )
    polling = HttpsDevice(hub, device)
    message = polling.receive()
    headers = message.headers
    assert message.content == b"hello"
    assert headers["iothub-messageid"] == "m7"
    assert headers["iothub-correlationid"] == "c7"
    assert headers["iothub-userid"] == "operator"
    assert headers["iothub-to"] == f"/devices/{device.id}/messages/devicebound"
    assert headers["iothub-ack"] == "full"
    assert headers["iothub-contenttype"] == "text/plain"
    assert headers["iothub-contentencoding"] == "utf-8"
    assert headers["iothub-deliverycount"] == "0"
    assert int(headers["iothub-sequencenumber"]) > 0
    assert headers["iothub-expiry"].startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(expiry)))
    assert headers["iothub-enqueuedtime"].endswith("Z")
    assert headers["iothub-app-color"] == "blue"
    assert headers["iothub-app-place"] == "%E6%97%A5%E6%9C%AC"
    assert polling.receive() is None, "it is locked"
    assert polling.complete(message) == 204
    assert polling.complete(message) == 412, "a lock settles once"
    assert message_count(hub, device) == 0


@pytest.mark.parametrize("query", ["&reject", "&reject=true", "&%3Freject=true"])
def test_every_spelling_of_reject(hub, device, query):
    send(hub, device.id, b"no")
    polling = HttpsDevice(hub, device)
    assert polling.reject(polling.receive(), query) == 204
    assert message_count(hub, device) == 0


def test_the_life_of_a_message_with_feedback_for_each_end(own_hub):
    device = own_device(own_hub)
    polling, feedback = HttpsDevice(own_hub, device), Feedback(own_hub)

    def sent(name, ack="full", **parts):
        send(own_hub, device.id, b"x", id=name, properties={"iothub-ack": ack}, **parts)

    # Completed.
    sent("completed")
    assert polling.complete(polling.receive()) == 204
    # Rejected.
    sent("rejected", "negative")
    assert polling.reject(polling.receive()) == 204
    # A lock that ends makes the message visible again, uncounted and in its place.
    sent("locked")
    sent("later")
    first = polling.receive()
    own_hub.advance(59)
    assert polling.receive().headers["iothub-messageid"] == "later"
    own_hub.advance(2)
    again = polling.receive()
    assert again.headers["iothub-messageid"] == "locked"
    assert again.headers["iothub-deliverycount"] == "0"
    assert polling.complete(first) == 412
    assert polling.complete(again) == 204
    own_hub.advance(61)
    assert polling.complete(polling.receive()) == 204
    # Abandoned ten times.
    sent("abandoned", "negative")
    for count in range(10):
        message = polling.receive()
        assert message.headers["iothub-deliverycount"] == str(count)
        assert polling.abandon(message) == 204
    assert polling.receive() is None
    # Purged.
    sent("purged")
    answer = https(own_hub, "DELETE", f"/devices/{device.id}/commands")
    assert answer.json()["totalMessagesPurged"] == 1, answer.text
    assert answer.json()["deviceId"] == device.id
    # What asked for no feedback gets none.
    sent("silent success", "negative")
    assert polling.complete(polling.receive()) == 204
    sent("silent failure", "positive")
    assert polling.reject(polling.receive()) == 204
    sent("silent", "none")
    assert polling.complete(polling.receive()) == 204
    assert message_count(own_hub, device) == 0

    expected = {
        "completed": "Success",
        "rejected": "Rejected",
        "locked": "Success",
        "later": "Success",
        "abandoned": "DeliveryCountExceeded",
        "purged": "Purged",
    }
    for name, status in expected.items():
        record = feedback.of(name)
        assert record["statusCode"] == status
        assert record["description"] == status
        assert record["deviceId"] == device.id
        assert record["deviceGenerationId"]
        assert record["enqueuedTimeUtc"].endswith("Z")
    assert {record["originalMessageId"] for record in feedback.records} == set(expected)


def test_a_short_expiry_with_feedback_tells_whether_a_device_can_be_reached(own_hub):
    device = own_device(own_hub)
    feedback = Feedback(own_hub)
    send(
        own_hub,
        device.id,
        b"are you there?",
        id="ping",
        expiry_time=time.time() + 30,
        properties={"iothub-ack": "full"},
    )
    own_hub.advance(31)
    assert feedback.of("ping")["statusCode"] == "Expired"
    assert message_count(own_hub, device) == 0
    assert HttpsDevice(own_hub, device).receive() is None


def test_the_default_time_to_live_is_an_hour_and_can_be_changed(own_hub, tmp_path):
    device = own_device(own_hub)
    polling = HttpsDevice(own_hub, device)
    send(own_hub, device.id, b"for an hour", id="hour", properties={"iothub-ack": "full"})
    change_settings(own_hub, tmp_path, defaultTtlAsIso8601="PT1M")
    send(own_hub, device.id, b"for a minute", id="minute", properties={"iothub-ack": "full"})
    feedback = Feedback(own_hub)
    own_hub.advance(61)
    assert feedback.of("minute")["statusCode"] == "Expired"
    assert message_count(own_hub, device) == 1
    own_hub.advance(3600)
    assert feedback.of("hour")["statusCode"] == "Expired"
    assert polling.receive() is None


def test_settings_are_in_force_at_once(own_hub, tmp_path):
    device = own_device(own_hub)
    polling = HttpsDevice(own_hub, device)
    change_settings(own_hub, tmp_path, maxDeliveryCount=1, maxQueueDepth=2)
    send(own_hub, device.id, b"1", id="once", properties={"iothub-ack": "full"})
    send(own_hub, device.id, b"2")
    with pytest.raises(Refused):
        send(own_hub, device.id, b"3")
    assert polling.abandon(polling.receive()) == 204
    assert Feedback(own_hub).of("once")["statusCode"] == "DeliveryCountExceeded"
    change_settings(own_hub, tmp_path, deliveryCountMode="everyLock", maxDeliveryCount=2)
    for count in range(2):
        assert polling.receive().headers["iothub-deliverycount"] == str(count)
        own_hub.advance(61)
    assert polling.receive() is None


def test_a_poller_beside_a_connected_device_competes_without_duplicates(hub, device):
    polling = HttpsDevice(hub, device)
    send(hub, device.id, b"polled")
    message = polling.receive()
    with Receiving(hub, device) as receiving:
        send(hub, device.id, b"pushed")
        assert receiving.next().data == b"pushed"
        assert polling.abandon(message) == 204
        assert receiving.next().data == b"polled"
        assert polling.receive() is None


def test_dead_letters_can_be_read_and_requeued(own_hub):
    device = own_device(own_hub)
    polling = HttpsDevice(own_hub, device)
    send(own_hub, device.id, b"precious", id="kept", properties={"color": "blue"})
    assert polling.reject(polling.receive()) == 204
    (letter,) = own_hub.admin("GET", f"/api/c2d/dead-letters?deviceId={device.id}")["deadLetters"]
    assert letter["deviceId"] == device.id
    assert letter["messageId"] == "kept"
    assert letter["cause"] == "Rejected"
    own_hub.run("c2d", "dead-letters", "requeue", str(letter["number"]))
    message = polling.receive()
    assert message.content == b"precious"
    assert message.headers["iothub-app-color"] == "blue"
    assert polling.complete(message) == 204
    assert own_hub.admin("GET", "/api/c2d/dead-letters")["deadLetters"] == []


def test_where_is_my_message(own_hub):
    device = own_device(own_hub)
    polling = HttpsDevice(own_hub, device)
    send(own_hub, device.id, b"x", id="sought", properties={"iothub-ack": "full"})

    def trace():
        return own_hub.run("c2d", "show", device.id, "--message-id", "sought")

    assert "waits for the device" in trace()
    assert polling.abandon(polling.receive()) == 204
    assert polling.complete(polling.receive()) == 204
    assert Feedback(own_hub).of("sought")["statusCode"] == "Success"
    text = trace().lower()
    assert "completed" in text and "abandoned" in text, text
