"""Peers that are not Azure's: paho-mqtt and qpid-proton, at the edges of the contract."""

import socket
import ssl
import struct
import threading
import urllib.parse

import paho.mqtt.client as mqtt
import proton
import proton.handlers
import proton.reactor
import pytest

from clients import Paho
from reading import body_of, events_of
from service import token

KIB_256 = 256 * 1024
WAIT_SECONDS_MAX = 30


def events_topic(device, bag=""):
    return f"devices/{device.id}/messages/events/{bag}"


def test_exactly_256_kilobytes_pass_and_one_byte_more_does_not(hub, device):
    # The size is the body plus names and values of properties: 1 + 1 here.
    peer = Paho(hub, device)
    peer.publish(events_topic(device, "a=b"), b"x" * (KIB_256 - 2))
    assert peer.published.wait(WAIT_SECONDS_MAX)
    peer.publish(events_topic(device, "a=b"), b"y" * (KIB_256 - 1))
    assert peer.is_refused()
    peer.close()
    (event,) = events_of(hub, device.id, 1)
    assert len(body_of(event)) == KIB_256 - 2


@pytest.mark.parametrize(
    "topic",
    [
        "devices/other/messages/events/",
        "devices/{id}/messages/devicebound/x",
        "devices/{id}x/messages/events/",
        "telemetry",
        "$iothub/unknown",
    ],
)
def test_a_publish_to_a_foreign_topic_ends_the_connection(hub, device, topic):
    peer = Paho(hub, device)
    peer.publish(topic.format(id=device.id))
    assert peer.is_refused()
    peer.close()


@pytest.mark.parametrize("topic", ["#", "devices/#", "devices/other/messages/devicebound/#", "+/+"])
def test_a_subscription_to_a_foreign_topic_ends_the_connection(hub, device, topic):
    peer = Paho(hub, device)
    peer.client.subscribe(topic, 1)
    assert peer.gone.wait(WAIT_SECONDS_MAX)
    peer.close()


def test_qos_2_ends_the_connection_and_a_qos_2_subscription_is_granted_1(hub, device):
    peer = Paho(hub, device)
    peer.client.subscribe(f"devices/{device.id}/messages/devicebound/#", 2)
    assert peer.subscribed.wait(WAIT_SECONDS_MAX)
    assert tuple(peer.granted) == (1,)
    peer.publish(events_topic(device), qos=2)
    assert peer.is_refused()
    peer.close()


def test_qos_0_arrives(hub, device):
    peer = Paho(hub, device)
    peer.publish(events_topic(device), b"zero", qos=0)
    peer.publish(events_topic(device), b"one", qos=1)
    assert peer.published.wait(WAIT_SECONDS_MAX)
    peer.close()
    assert [body_of(e) for e in events_of(hub, device.id, 2)] == [b"zero", b"one"]


def test_subscriptions_outlive_the_connection_and_the_hub(own_hub):
    device = own_hub.create_device("subscriber")
    first = Paho(own_hub, device, clean=False)
    assert first.session_present == 0
    first.client.subscribe("$iothub/twin/res/#", 1)
    assert first.subscribed.wait(WAIT_SECONDS_MAX)
    first.close()
    own_hub.kill()
    own_hub.start()
    second = Paho(own_hub, device, clean=False)
    assert second.session_present == 1
    # The restored subscription works: a twin request is answered on it.
    answered = threading.Event()
    topics = []
    second.client.on_message = lambda c, u, m: (topics.append(m.topic), answered.set())
    second.publish("$iothub/twin/GET/?$rid=7", b"", qos=0)
    assert answered.wait(WAIT_SECONDS_MAX)
    assert topics == ["$iothub/twin/res/501/?$rid=7"]
    second.close()
    clean = Paho(own_hub, device, clean=True)
    assert clean.session_present == 0
    clean.close()
    assert Paho(own_hub, device, clean=False).session_present == 0


def test_a_will_is_published_when_the_connection_breaks_and_not_after_a_farewell(hub, device):
    polite = Paho(hub, device, will=(events_topic(device, "w=1"), b"polite", 1))
    polite.close()
    rude = Paho(hub, device, will=(events_topic(device, "w=1"), b"rude", 1))
    rude.client.loop_stop()
    rude.client.socket().close()
    (event,) = events_of(hub, device.id, 1)
    assert body_of(event) == b"rude"
    assert event.properties == {b"w": b"1", b"iothub-MessageType": b"Will"}


def test_a_retained_publish_is_marked_and_not_retained(hub, device):
    peer = Paho(hub, device)
    peer.publish(events_topic(device), b"r", retain=True)
    assert peer.published.wait(WAIT_SECONDS_MAX)
    peer.close()
    (event,) = events_of(hub, device.id, 1)
    assert event.properties == {b"mqtt-retain": b"true", b"x-opt-retain": b"true"}


def test_stamps_cannot_be_forged(hub, device):
    forged = "&".join(
        f"{urllib.parse.quote(name, safe='')}=forged"
        for name in (
            "$.cdid", "$.cmid", "iothub-connection-device-id", "iothub-message-source",
            "iothub-connection-auth-method", "iothub-enqueuedtime", "x-opt-sequence-number",
        )
    )
    peer = Paho(hub, device)
    peer.publish(events_topic(device, forged), b"f")
    assert peer.published.wait(WAIT_SECONDS_MAX)
    peer.close()
    (event,) = events_of(hub, device.id, 1)
    stamps = event.system_properties
    assert stamps[b"iothub-connection-device-id"] == device.id.encode()
    assert stamps[b"iothub-message-source"] == b"Telemetry"
    assert b"forged" not in stamps[b"iothub-connection-auth-method"]
    assert isinstance(stamps[b"iothub-enqueuedtime"], int)
    assert isinstance(event.sequence_number, int)
    assert b"iothub-connection-module-id" not in stamps


def tls_socket(hub, port, *, version=None):
    context = ssl.create_default_context(cafile=str(hub.ca))
    if version:
        context.minimum_version = context.maximum_version = version
    return context.wrap_socket(
        socket.create_connection((hub.address, port), timeout=WAIT_SECONDS_MAX),
        server_hostname=hub.address,
    )


def test_tls_1_2_and_1_3_and_nothing_older(hub):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for port in (8883, 5671, 443):
            tls_socket(hub, port, version=version).close()
    with pytest.raises((ssl.SSLError, OSError)):
        tls_socket(hub, 8883, version=ssl.TLSVersion.TLSv1_1)


def connect_packet(device, hub, *, level=4, name=b"MQTT"):
    def text(value):
        value = value if isinstance(value, bytes) else value.encode()
        return struct.pack(">H", len(value)) + value

    rest = text(name) + bytes([level, 0xC2]) + struct.pack(">H", 60)
    if level == 5:
        rest += b"\0"
    rest += text(device.id) + text(f"{hub.address}/{device.id}/?api-version=2021-04-12")
    rest += text(token(f"{hub.address}/devices/{device.id}", device.key))
    length = len(rest)
    header = b""
    while True:
        length, digit = divmod(length, 128)
        header += bytes([digit | (0x80 if length else 0)])
        if not length:
            return b"\x10" + header + rest


def read_all(connection):
    """Everything until the other side closes."""
    got = b""
    while True:
        try:
            piece = connection.recv(4096)
        except TimeoutError:
            raise
        except OSError:
            return got
        if not piece:
            return got
        got += piece


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x30\xff\xff\xff\xff\x7f",
        b"\x10\xff\xff\xff\x7f",
        b"\xc0\x00",
    ],
)
def test_rubbish_before_connect_ends_the_connection_without_an_answer(hub, rubbish):
    connection = tls_socket(hub, 8883)
    connection.sendall(rubbish)
    assert read_all(connection) == b""


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x31\xff\xff\xff\xff\x7f",  # a remaining length of five bytes
        b"\x32\x04\x00\x05ab",  # a topic longer than its packet
        b"\x32\x02\x00\x00",  # no packet id
        b"\x36\x05\x00\x01a\x00\x01",  # QoS 3
        b"\x82\x02\x00\x01",  # a SUBSCRIBE without a filter
        b"\x80\x02\x00\x01",  # a SUBSCRIBE with wrong flags
        b"\x50\x02\x00\x01",  # PUBREC
        b"\xf0\x00",  # a reserved packet type
    ],
)
def test_bad_packets_end_the_connection_and_nobody_elses(hub, device, rubbish):
    other = Paho(hub, hub.create_device(f"{device.id}-other"))
    connection = tls_socket(hub, 8883)
    connection.sendall(connect_packet(device, hub))
    assert connection.recv(4) == b"\x20\x02\x00\x00"
    connection.sendall(rubbish)
    assert read_all(connection) == b""
    other.publish(f"devices/{device.id}-other/messages/events/")
    assert other.published.wait(WAIT_SECONDS_MAX)
    other.close()


def test_other_protocol_levels_are_told_so(hub, device):
    old = tls_socket(hub, 8883)
    old.sendall(connect_packet(device, hub, level=3, name=b"MQIsdp"))
    assert read_all(old) == b"\x20\x02\x00\x01"
    new = tls_socket(hub, 8883)
    new.sendall(connect_packet(device, hub, level=5))
    assert read_all(new)[:1] == b"\x20"


class Receive(proton.handlers.MessagingHandler):
    """Authenticates by CBS and receives from one partition with chosen credit."""

    def __init__(self, hub, partition, want, *, credit, max_frame=None, drain=False):
        super().__init__(prefetch=0, auto_accept=True)
        self.hub, self.partition, self.want, self.credit = hub, partition, want, credit
        self.max_frame, self.drain_first = max_frame, drain
        self.got, self.drained_with = [], None
        string = dict(part.split("=", 1) for part in hub.event_hub_string().split(";"))
        self.policy, self.key = string["SharedAccessKeyName"], string["SharedAccessKey"]

    def on_start(self, event):
        ssl_domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
        ssl_domain.set_trusted_ca_db(str(self.hub.ca))
        ssl_domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER)
        options = {"max_frame_size": self.max_frame} if self.max_frame else {}
        self.connection = event.container.connect(
            f"amqps://{self.hub.address}:5671",
            ssl_domain=ssl_domain,
            allowed_mechs="ANONYMOUS",
            reconnect=False,
            **options,
        )
        self.cbs_in = event.container.create_receiver(self.connection, "$cbs", name="cbs-in")
        self.cbs_in.flow(1)
        self.cbs_out = event.container.create_sender(self.connection, "$cbs", name="cbs-out")

    def on_sendable(self, event):
        if event.link == self.cbs_out and not getattr(self, "asked", False):
            self.asked = True
            resource = f"sb://{self.hub.address}/hub"
            self.cbs_out.send(
                proton.Message(
                    id=1,
                    reply_to="cbs-in",
                    body=token(resource, self.key, policy=self.policy, raw_key=True),
                    properties={
                        "operation": "put-token",
                        "type": "servicebus.windows.net:sastoken",
                        "name": resource,
                    },
                )
            )

    def on_message(self, event):
        if event.link == self.cbs_in:
            assert event.message.properties["status-code"] == 200, event.message
            assert event.message.correlation_id == 1
            self.receiver = event.container.create_receiver(
                self.connection, f"hub/ConsumerGroups/$Default/Partitions/{self.partition}"
            )
            if self.drain_first:
                self.receiver.drain(self.want + 1000)
            else:
                self.receiver.flow(self.credit)
            return
        self.got.append(event.message)
        if len(self.got) == self.want and not self.drain_first:
            self.connection.close()
        elif not self.drain_first and len(self.got) % self.credit == 0:
            self.receiver.flow(self.credit)

    def on_link_flow(self, event):
        if self.drain_first and event.link == getattr(self, "receiver", None):
            if not event.link.draining() or event.link.credit == 0:
                self.drained_with = len(self.got)
                self.connection.close()

    def on_transport_error(self, event):
        raise AssertionError(str(event.transport.condition))


def partition_of(hub, device):
    from reading import consumer, from_device, read_until

    read = read_until(
        consumer(hub), lambda events: any(from_device(e, device.id) for _, e in events)
    )
    return next(p for p, e in read if from_device(e, device.id))


def test_large_transfers_cross_small_frames(own_hub):
    device = own_hub.create_device("large")
    peer = Paho(own_hub, device)
    for n in range(5):
        peer.publish(events_topic(device), bytes([n]) * 200_000)
        assert peer.published.wait(WAIT_SECONDS_MAX)
    peer.close()
    receive = Receive(own_hub, partition_of(own_hub, device), 5, credit=2, max_frame=512)
    proton.reactor.Container(receive).run()
    assert [bytes(m.body) for m in receive.got] == [bytes([n]) * 200_000 for n in range(5)]


def test_a_drain_gives_back_the_credit_that_is_left(own_hub):
    device = own_hub.create_device("drained")
    peer = Paho(own_hub, device)
    for n in range(3):
        peer.publish(events_topic(device), b"%d" % n)
        assert peer.published.wait(WAIT_SECONDS_MAX)
    peer.close()
    receive = Receive(own_hub, partition_of(own_hub, device), 3, credit=0, drain=True)
    proton.reactor.Container(receive).run()
    assert receive.drained_with == 3
    assert [bytes(m.body) for m in receive.got] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    "hostile",
    [
        # An attach whose list announces 4 billion entries.
        bytes.fromhex("0000001a02000000005312d0fffffff0fffffff0") + b"\x40" * 6,
        # A frame that announces more than the limit.
        bytes.fromhex("7fffffff02000000") + b"\0" * 64,
        # Lists in lists, 5,000 deep.
        struct.pack(">I", 8 + 3 + 9 * 5000) + bytes.fromhex("02000000005312")
        + b"".join(struct.pack(">BII", 0xD0, 9 * (5000 - n), 1) for n in range(5000)),
    ],
    ids=["count", "frame-size", "nesting"],
)
def test_a_hostile_frame_ends_its_connection_and_hurts_nobody(hub, device, hostile):
    connection = tls_socket(hub, 5671)
    connection.sendall(b"AMQP\x00\x01\x00\x00")
    assert connection.recv(8) == b"AMQP\x00\x01\x00\x00"
    try:
        connection.sendall(hostile)
    except OSError:
        # The hub has closed the connection before it was all sent.
        pass
    read_all(connection)
    peer = Paho(hub, device)
    peer.publish(events_topic(device))
    assert peer.published.wait(WAIT_SECONDS_MAX)
    peer.close()
