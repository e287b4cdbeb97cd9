"""Telemetry of the unmodified Python device SDK, read back through the unmodified Event Hubs SDK."""

import datetime
import json
import random
import threading
import time
import uuid

import pytest
from azure.iot.device import IoTHubDeviceClient, Message
from azure.iot.device.exceptions import ClientError, CredentialError

from reading import body_of, consumer, events_of, from_device, read_until

NASTY = [
    "plain", "with blank", " leading", "trailing ", "+", "a+b", "%", "100%", "%20", "%zz", "/", "a/b/c",
    "&", "a&b=c", "=", "==", "$", "$.mid", "?", "#", "é", "日本語", "🚀 rocket", "'\"", "\\", ";:,.", "~-_",
]


def client_of(hub, device, *, websocket=False, **options):
    return IoTHubDeviceClient.create_from_connection_string(
        device.connection_string,
        server_verification_cert=hub.ca.read_text(),
        websockets=websocket,
        **options,
    )


@pytest.fixture(params=[False, True], ids=["mqtt", "mqtt-ws"])
def websocket(request):
    return request.param


def test_every_body_and_property_comes_out_as_it_went_in(hub, device, websocket):
    chance = random.Random(7)
    sent = []
    client = client_of(hub, device, websocket=websocket)
    client.connect()
    for number in range(40):
        size = chance.choice([0, 1, 2, 100, 5000, 60000])
        message = Message(chance.randbytes(size))
        message.message_id = f"message {number}"
        count = 40 if number == 0 else chance.randrange(0, 12)
        for index in range(count):
            name = f"{index}{chance.choice(NASTY)}"
            message.custom_properties[name] = chance.choice(NASTY + [""])
        sent.append(message)
        client.send_message(message)
    client.shutdown()

    events = events_of(hub, device.id, len(sent))
    assert len(events) == len(sent)
    for message, event in zip(sent, events, strict=True):
        assert body_of(event) == message.data
        assert event.message_id == message.message_id
        expected = {name: value for name, value in message.custom_properties.items()}
        got = {name.decode(): value.decode() for name, value in event.properties.items()}
        assert got == expected


def test_every_system_property_comes_out_as_it_went_in(hub, device, websocket):
    client = client_of(hub, device, websocket=websocket)
    client.connect()
    message = Message(json.dumps({"t": 21.5}))
    message.message_id = "m:1-.+%_#*?!(),=@;$'"
    message.correlation_id = "c 1/&=é"
    message.user_id = "someone é"
    message.content_type = "application/json;charset=utf-8"
    message.content_encoding = "utf-8"
    message.expiry_time_utc = datetime.datetime(2031, 1, 2, 3, 4, 5)
    message.custom_properties["$.sub"] = "thermostat1"
    before = int(time.time() * 1000)
    client.send_message(message)
    client.shutdown()

    (event,) = events_of(hub, device.id, 1)
    assert event.message_id == message.message_id
    assert event.correlation_id == message.correlation_id
    assert event.content_type == message.content_type
    assert event.raw_amqp_message.properties.content_encoding.decode() == "utf-8"
    assert event.raw_amqp_message.properties.user_id == message.user_id.encode()
    assert event.raw_amqp_message.properties.absolute_expiry_time == 1925089445000
    assert event.raw_amqp_message.properties.to == f"/devices/{device.id}/messages/events".encode()
    stamps = event.system_properties
    assert stamps[b"dt-subject"] == b"thermostat1"
    assert stamps[b"iothub-connection-device-id"] == device.id.encode()
    assert json.loads(stamps[b"iothub-connection-auth-method"]) == {
        "scope": "device",
        "type": "sas",
        "issuer": "iothub",
        "acceptingIpFilterRule": None,
    }
    assert stamps[b"iothub-connection-auth-generation-id"]
    assert stamps[b"iothub-message-source"] == b"Telemetry"
    assert stamps[b"x-opt-partition-key"] == device.id.encode()
    # The time of acceptance is never later than the time of storage.
    accepted = stamps[b"iothub-enqueuedtime"]
    stored = stamps[b"x-opt-enqueued-time"]
    assert before - 2000 <= accepted <= stored <= int(time.time() * 1000) + 2000
    assert int(event.offset) == event.sequence_number
    assert event.body_as_json() == {"t": 21.5}


def test_a_model_id_reaches_the_reader(hub, device):
    client = client_of(hub, device, product_info="dtmi:com:example:Thermostat;1")
    client.connect()
    client.send_message("x")
    client.shutdown()
    (event,) = events_of(hub, device.id, 1)
    assert event.system_properties[b"dt-dataschema"] == b"dtmi:com:example:Thermostat;1"


def test_ids_of_128_characters_and_of_every_allowed_sign_work_and_129_do_not(hub):
    # All but + and #, which the SDK's own MQTT client refuses in a topic, and ; of its strings.
    signs = "-:.%_*?!(),=@$'"
    for device_id in ("L" * 128, f"s{signs}{uuid.uuid4().hex[:8]}"):
        device = hub.create_device(device_id)
        client = client_of(hub, device)
        client.connect()
        client.send_message("long")
        client.shutdown()
        (event,) = events_of(hub, device_id, 1)
        assert body_of(event) == b"long"
    with pytest.raises(RuntimeError, match="128"):
        hub.create_device("L" * 129)


def test_messages_of_one_device_share_a_partition_and_keep_their_order(hub, device):
    client = client_of(hub, device)
    client.connect()
    for number in range(200):
        client.send_message(str(number))
    client.shutdown()
    read = read_until(
        consumer(hub), lambda events: sum(from_device(e, device.id) for _, e in events) >= 200
    )
    mine = [(partition, event) for partition, event in read if from_device(event, device.id)]
    assert len({partition for partition, _ in mine}) == 1
    assert [int(body_of(event)) for _, event in mine] == list(range(200))
    numbers = [event.sequence_number for _, event in mine]
    assert numbers == sorted(set(numbers))


def test_a_body_of_255_kilobytes_passes_and_one_of_300_ends_the_connection(hub, device, websocket):
    client = client_of(hub, device, websocket=websocket, connection_retry=False, auto_connect=False)
    client.connect()
    client.send_message(Message(b"x" * 255 * 1024))
    with pytest.raises(Exception):
        client.send_message(Message(b"y" * 300 * 1024))
    client.shutdown()
    (event,) = events_of(hub, device.id, 1)
    assert len(body_of(event)) == 255 * 1024


def test_a_wrong_key_and_an_unknown_device_are_refused(hub, device):
    wrong_key = device.connection_string.replace(device.key, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    unknown = device.connection_string.replace(device.id, f"{device.id}x")
    for connection_string in (wrong_key, unknown):
        client = IoTHubDeviceClient.create_from_connection_string(
            connection_string, server_verification_cert=hub.ca.read_text()
        )
        with pytest.raises(CredentialError):
            client.connect()
        client.shutdown()


def test_the_secondary_key_works_as_well(hub, device):
    shown = json.loads(hub.run("device", "show", device.id, "--output", "json"))
    secondary = shown["authentication"]["symmetricKey"]["secondaryKey"]
    client = IoTHubDeviceClient.create_from_connection_string(
        device.connection_string.replace(device.key, secondary),
        server_verification_cert=hub.ca.read_text(),
    )
    client.connect()
    client.send_message("with the secondary key")
    client.shutdown()
    (event,) = events_of(hub, device.id, 1)
    assert body_of(event) == b"with the secondary key"


def test_a_newer_connection_ends_the_older_one(hub, device):
    lost = threading.Event()
    older = client_of(hub, device, connection_retry=False, auto_connect=False)
    older.on_connection_state_change = lambda: None if older.connected else lost.set()
    older.connect()
    newer = client_of(hub, device)
    newer.connect()
    assert lost.wait(30), "the older connection stayed"
    newer.send_message("from the newer")
    newer.shutdown()
    older.shutdown()
    (event,) = events_of(hub, device.id, 1)
    assert body_of(event) == b"from the newer"


@pytest.mark.parametrize("change", ["disable", "delete"])
def test_disabling_or_deleting_a_device_ends_its_connection(hub, device, change):
    lost = threading.Event()
    client = client_of(hub, device, connection_retry=False, auto_connect=False)
    client.on_connection_state_change = lambda: None if client.connected else lost.set()
    client.connect()
    if change == "disable":
        hub.run("device", "update", device.id, "--status", "disabled")
    else:
        hub.run("device", "delete", device.id)
    assert lost.wait(30), "the connection stayed"
    with pytest.raises(CredentialError):
        client.connect()
    client.shutdown()


def test_an_expired_token_ends_the_connection_after_five_minutes_of_grace(own_hub):
    device = own_hub.create_device("expiring")
    lost = threading.Event()
    # The longest keep-alive, so that moving the clock is not taken for silence.
    client = client_of(
        own_hub, device, sastoken_ttl=1000, keep_alive=1740, connection_retry=False, auto_connect=False
    )
    client.on_connection_state_change = lambda: None if client.connected else lost.set()
    client.connect()
    own_hub.advance(1000 + 4 * 60)
    client.send_message("in the grace")
    assert not lost.is_set()
    own_hub.advance(2 * 60)
    assert lost.wait(30), "the connection outlived its token"
    client.shutdown()
    (event,) = events_of(own_hub, device.id, 1)
    assert body_of(event) == b"in the grace"


def test_the_sdk_renews_its_token_by_a_new_connection(own_hub):
    device = own_hub.create_device("renewing")
    # The SDK renews 120 s before the end, so after a second or two.
    client = client_of(own_hub, device, sastoken_ttl=122)
    client.connect()

    def connections():
        (line,) = [
            line
            for line in own_hub.metrics().splitlines()
            if line.startswith("fieldpost_connections_total{") and 'protocol="mqtt"' in line
        ]
        return int(line.rsplit(" ", 1)[1])

    deadline = time.monotonic() + 60
    wait = threading.Event()
    while connections() < 2:
        assert time.monotonic() < deadline, "the SDK did not renew its token"
        wait.wait(0.1)
    client.send_message("renewed")
    client.shutdown()
    (event,) = events_of(own_hub, device.id, 1)
    assert body_of(event) == b"renewed"


def test_a_twin_request_is_answered_and_not_left_in_silence(hub, device):
    client = client_of(hub, device)
    client.connect()
    with pytest.raises(ClientError):
        client.get_twin()
    client.send_message("after the twin")
    client.shutdown()
    (event,) = events_of(hub, device.id, 1)
    assert body_of(event) == b"after the twin"


def test_clients_come_back_by_themselves_after_a_restart_and_lose_nothing(own_hub):
    device = own_hub.create_device("returning")
    client = client_of(own_hub, device)
    client.connect()
    client.send_message("0")
    own_hub.stop()
    own_hub.start()
    for number in range(1, 6):
        client.send_message(str(number))
    client.shutdown()
    events = events_of(own_hub, device.id, 6)
    assert [body_of(event) for event in events][0] == b"0"
    assert {body_of(event) for event in events} >= {str(n).encode() for n in range(6)}
