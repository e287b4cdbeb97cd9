"""A hub that plays a tier of Azure's, and what unmodified libraries and plain requests make of it."""

import asyncio
import threading
import time

import azure.iot.device.aio
import paho.mqtt.client
import proton
import proton.handlers
import proton.reactor
import pytest
import requests
import service
from conftest import trusted
from devices import token_of
from hostile import wait_until
from reading import body_of, consumer, read_until

API_VERSION = "2021-04-12"
#: Messages from devices that tier S1 takes in a second; so many pass at once.
RATE = 100
#: What F1 takes in a day, and the bytes that count as one message.
QUOTA, METER = 8000, 512
#: A body that counts for a twentieth of that day, its properties included.
TWENTIETH = b"x" * (QUOTA // 20 * METER)
WAIT_SECONDS_MAX = 30
DAY_SECONDS = 24 * 3600


def play(hub, tier, units=1):
    hub.admin("PUT", "/api/hub", {"properties": {"throttling": {"tier": tier, "units": units}}})


class Requests:
    """Requests over one kept connection, as a device or as a service."""

    def __init__(self, hub, device=None):
        self.hub, self.session = hub, requests.Session()
        token = (
            service.device_token(hub, device)
            if device
            else service.service_token(hub, policy="iothubowner", life=7 * DAY_SECONDS)
        )
        self.session.headers["Authorization"] = token

    def ask(self, method, path, body=None):
        url = f"https://{self.hub.address}{path}?api-version={API_VERSION}"
        # The session's own trust would give way to that of the environment.
        trust = str(self.hub.ca)
        return self.session.request(method, url, data=body, verify=trust, timeout=WAIT_SECONDS_MAX)


def check_refused(answer, status, name):
    assert answer.status_code == status, answer.text
    assert answer.headers["iothub-errorcode"] == name
    assert answer.json()["Message"].startswith(f"ErrorCode:{name};")


def ask_until_refused(requests, method, path, limit):
    """The first answer that is a refusal, and how many others came before it."""
    for count in range(3 * limit):
        answer = requests.ask(method, path)
        if answer.status_code >= 400:
            return answer, count
    raise AssertionError(f"{3 * limit} requests passed")


def test_a_device_above_the_rate_is_held_back_and_loses_nothing(own_hub):
    device = own_hub.create_device("fast-1")
    play(own_hub, "S1")
    count = 3 * RATE

    async def send():
        client = azure.iot.device.aio.IoTHubDeviceClient.create_from_connection_string(
            device.connection_string, server_verification_cert=own_hub.ca.read_text()
        )
        await client.connect()
        began = time.monotonic()
        await asyncio.gather(*(client.send_message(f"m{n}") for n in range(count)))
        took = time.monotonic() - began
        await client.shutdown()
        return took

    # What the rate gives in a second passes at once, the others at the rate.
    took = asyncio.run(send())
    assert took >= (count - RATE) / RATE - 0.1, took
    with trusted(own_hub), consumer(own_hub) as client:
        events = read_until(client, lambda events: len(events) >= count)
    assert {body_of(event).decode() for _, event in events} == {f"m{n}" for n in range(count)}
    figures = own_hub.metrics()
    assert 'fieldpost_throttle_delayed_total{operation="device_to_cloud"}' in figures


def test_too_many_requests_to_the_registry_are_told_when_to_come_again(own_hub):
    own_hub.create_device("one")
    play(own_hub, "S1")
    services = Requests(own_hub)
    answer, count = ask_until_refused(services, "GET", "/devices/one", 100)
    assert count >= 100
    check_refused(answer, 429, "ThrottlingException")
    own_hub.advance(int(answer.headers["Retry-After"]))
    assert services.ask("GET", "/devices/one").status_code == 200
    # An operator is never throttled, and may end it.
    play(own_hub, "none")
    for _ in range(150):
        assert services.ask("GET", "/devices/one").status_code == 200


def test_too_many_requests_for_messages_are_told_when_to_come_again(own_hub):
    device = own_hub.create_device("polls")
    play(own_hub, "S1")
    polling = Requests(own_hub, device)
    path = f"/devices/{device.id}/messages/deviceBound"
    answer, count = ask_until_refused(polling, "GET", path, 1000)
    assert count >= 1000
    check_refused(answer, 429, "ThrottlingException")
    own_hub.advance(int(answer.headers["Retry-After"]))
    assert polling.ask("GET", path).status_code == 204


def test_messages_to_devices_above_the_rate_wait_and_then_are_refused(own_hub):
    device = own_hub.create_device("slow")
    own_hub.admin(
        "PUT",
        "/api/hub",
        {
            "properties": {
                "throttling": {"tier": "S1"},
                "cloudToDevice": {"maxQueueDepth": 1000},
            }
        },
    )
    outcomes = Many(own_hub, device, 150).run()
    # 100 pass at once, and 16 or 17 find a place in a line of ten seconds.
    assert outcomes.accepted >= 116
    assert outcomes.refused
    assert set(outcomes.refused) == {"com.microsoft:device-container-throttled"}
    assert outcomes.accepted + len(outcomes.refused) == 150
    assert service.message_count(own_hub, device) == outcomes.accepted


class Many(proton.handlers.MessagingHandler):
    """Sends as many messages as the credit lets it, and waits for all answers."""

    def __init__(self, hub, device, count):
        super().__init__(auto_settle=True)
        self.hub, self.device, self.count = hub, device, count
        self.sent = self.accepted = 0
        self.refused = []

    def run(self):
        container = proton.reactor.Container(self)
        container.run()
        return self

    def on_start(self, event):
        domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
        domain.set_trusted_ca_db(str(self.hub.ca))
        domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER)
        self.connection = event.container.connect(
            f"amqps://{self.hub.address}:5671",
            ssl_domain=domain,
            allowed_mechs="PLAIN",
            user="service@sas.root.hub",
            password=service.service_token(self.hub),
            reconnect=False,
        )
        event.container.create_sender(self.connection, "/messages/devicebound")

    def on_sendable(self, event):
        while event.sender.credit and self.sent < self.count:
            self.sent += 1
            to = f"/devices/{self.device.id}/messages/devicebound"
            event.sender.send(proton.Message(body=b"x", inferred=True, address=to))

    def on_accepted(self, event):
        self.accepted += 1
        self.end_if_done()

    def on_rejected(self, event):
        self.refused.append(event.delivery.remote.condition.name)
        self.end_if_done()

    def end_if_done(self):
        if self.accepted + len(self.refused) == self.count:
            self.connection.close()


@pytest.fixture
def used_up(own_hub):
    """A hub whose quota of the day is used up, and a device of it."""
    device = own_hub.create_device("quota")
    other = own_hub.create_device("other")
    play(own_hub, "F1")
    sending = Requests(own_hub, device)
    path = f"/devices/{device.id}/messages/events"
    for _ in range(20):
        assert sending.ask("POST", path, TWENTIETH).status_code == 204
    check_refused(sending.ask("POST", path, b"x"), 403, "IotHubQuotaExceeded")
    return own_hub, device, other


def test_the_quota_ends_sending_until_midnight(used_up):
    hub, device, _ = used_up
    path = f"/devices/{device.id}/messages/events"
    with pytest.raises(service.Refused) as refused:
        service.send(hub, device.id, b"x")
    assert refused.value.condition == "com.microsoft:quota-exceeded"
    # The registry is free.
    assert Requests(hub).ask("GET", f"/devices/{device.id}").status_code == 200
    # The count outlives the process.
    hub.stop()
    hub.start()
    check_refused(Requests(hub, device).ask("POST", path, b"x"), 403, "IotHubQuotaExceeded")
    hub.advance(DAY_SECONDS - (hub.now() // 1000) % DAY_SECONDS)
    again = Requests(hub, device)
    token = token_of(hub.address, device.id, device.key, life=3 * DAY_SECONDS)
    again.session.headers["Authorization"] = token
    assert again.ask("POST", path, b"x").status_code == 204


def test_the_quota_ends_a_connection_over_mqtt(used_up):
    hub, _, device = used_up
    client = paho.mqtt.client.Client(device.id)
    client.tls_set(ca_certs=str(hub.ca))
    client.username_pw_set(
        f"{hub.address}/{device.id}/?api-version={API_VERSION}", service.device_token(hub, device)
    )
    published, ended = [], threading.Event()
    client.on_publish = lambda *given: published.append(given)
    client.on_connect = lambda *_: client.publish(
        f"devices/{device.id}/messages/events/", b"x", qos=1
    )
    client.on_disconnect = lambda *_: (client.disconnect(), ended.set())
    client.connect(hub.address, 8883)
    client.loop_start()
    counted = 'fieldpost_connections_refused_total{protocol="mqtt",reason="not_taken"} 1'
    wait_until(lambda: counted in hub.metrics(), "nothing was refused")
    # It would be back in a moment and send the same again.
    assert not ended.is_set()
    hub.advance(10)
    assert ended.wait(WAIT_SECONDS_MAX)
    client.loop_stop()
    assert not published
