"""Clients that mean no good: before TLS, before the first packet, over MQTT and over WebSocket.

Each test names one way to cost the hub time or memory. The hub must answer in the documented form or
end the connection, on time by its own clock, which the tests move. What every test demands besides,
whatever it sends, stands in `hostile.Watch`: the process lives and serves others, its memory has not
grown beyond a bound at any moment, and its log tells little.
"""

import ssl
import struct

import pytest

import certificates
import service
from hostile import (
    MIB,
    OVER,
    PORTS,
    Ended,
    Socket,
    WebSocket,
    check_ends_after,
    check_is_held_back,
    check_open,
    exactly,
    fill_queue,
    is_connected,
    mqtt_connect,
    mqtt_device,
    mqtt_packet,
    mqtt_publish,
    mqtt_subscribe,
    mqtt_text,
    open_files,
    read_until_end,
    upgrade,
    wait_until,
    ws_frame,
)

TLS_HANDSHAKE_SECONDS = 15
#: From the end of the handshake to a whole first packet, by what is spoken.
FIRST_SECONDS = {"mqtt": 15, "mqtt-ws": 15, "amqp": 60, "amqp-ws": 60}
LINGER_SECONDS = 5
KEEP_ALIVE_SECONDS = 60
#: A client counts as gone after one and a half times its keep-alive.
SILENCE_SECONDS_MAX = KEEP_ALIVE_SECONDS * 3 // 2
#: The longest that one packet may be on its way.
PACKET_SECONDS_MAX = 1767
UNAUTHENTICATED_BYTES_MAX = 16 * 1024
PACKET_BYTES_MAX = 320 * 1024

each_port = pytest.mark.parametrize("port", PORTS.values(), ids=PORTS.keys())
over_mqtt = pytest.mark.parametrize("over", ["mqtt", "mqtt-ws"])
over_any = pytest.mark.parametrize("over", list(OVER))


@pytest.fixture
def hub(hub_of_module, watch):
    """The hub of these tests, which is looked at after each."""
    return hub_of_module


def client_hello(hub):
    """The first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context(cafile=str(hub.ca)).wrap_bio(
        incoming, outgoing, server_hostname=hub.address
    )
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


# Before TLS.


@each_port
def test_a_tls_handshake_that_never_begins(hub, port):
    check_ends_after(hub, Socket(hub, port, tls=False), TLS_HANDSHAKE_SECONDS)


@each_port
def test_a_tls_handshake_that_is_given_up_in_the_middle(hub, port):
    peer = Socket(hub, port, tls=False)
    peer.send(client_hello(hub))
    assert peer.receive()
    hub.advance(TLS_HANDSHAKE_SECONDS - 1)
    check_open(peer)
    hub.advance(2)
    read_until_end(peer)


@each_port
def test_a_tls_handshake_of_single_bytes_earns_no_time(hub, port):
    peer = Socket(hub, port, tls=False)
    hello = client_hello(hub)
    assert len(hello) > TLS_HANDSHAKE_SECONDS + 2
    for at in range(TLS_HANDSHAKE_SECONDS - 1):
        peer.send(hello[at : at + 1])
        hub.advance(1)
    check_open(peer)
    peer.send(hello[TLS_HANDSHAKE_SECONDS - 1 : TLS_HANDSHAKE_SECONDS])
    hub.advance(2)
    assert read_until_end(peer) == b""


@each_port
@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"AMQP\x00\x01\x00\x00",
        b"\x00" * 1024,
        b"\xff" * 65536,
        # A record of 64 KB less one.
        b"\x16\x03\x01\xff\xff" + b"\x01" * 65535,
        # A ClientHello that announces 16 MB, in records that may be.
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"\x03" * (0x4000 - 4)
        + (b"\x16\x03\x03\x40\x00" + b"\x00" * 0x4000) * 16,
        # An alert, and data before there are keys.
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x10" + b"\x00" * 16,
    ],
    ids=["http", "amqp", "zeros", "ones", "record", "hello-of-16-mb", "alert", "data"],
)
def test_what_is_not_tls_ends_the_connection_at_once(hub, port, rubbish):
    peer = Socket(hub, port, tls=False)
    peer.send(rubbish)
    # Nothing but a TLS alert may be said.
    got = read_until_end(peer)
    assert got == b"" or (got[0] == 0x15 and len(got) == 7), got


@pytest.fixture(scope="module")
def chain_of_a_megabyte(tmp_path_factory):
    made = certificates.self_signed(tmp_path_factory.mktemp("chain"), "long")
    chain = made.certificate.with_name("chain.pem")
    text = made.certificate.read_text()
    chain.write_text(text * (MIB // len(ssl.PEM_cert_to_DER_cert(text)) + 1))
    return str(chain), str(made.key)


@each_port
def test_a_client_certificate_chain_of_a_megabyte(hub, port, chain_of_a_megabyte):
    with pytest.raises((OSError, Ended)):
        peer = Socket(hub, port, certificate=chain_of_a_megabyte)
        # TLS 1.3 tells a client only now.
        read_until_end(peer)
        raise Ended


@each_port
def test_thousands_of_connections_that_are_reset_at_once(hub, watch, port):
    files = open_files(hub)
    hello = client_hello(hub)
    for number in range(2000):
        peer = Socket(hub, port, tls=False)
        if number % 2:
            peer.send(hello)
        peer.reset()
    wait_until(lambda: open_files(hub) <= files + 10, "sockets are left open")


@each_port
def test_more_silent_connections_from_one_address_than_may_be(hub, watch, keeping_to_the_rules, port):
    # As many as may be without authentication, and more. Loopback is exempt from the bound for one
    # address, so it is the one for all that holds; new ones wait until the time for TLS is over.
    held = [Socket(hub, port, tls=False) for _ in range(4500)]
    late = Socket(hub, port, tls=False)
    late.send(client_hello(hub))
    assert check_open(late) == b"", "the hub serves more than it says"
    # Each listener keeps one place for whoever comes next.
    for other in set(PORTS.values()) - {port}:
        Socket(hub, other).close()
    # For 4,096 tasks, their sockets and what TLS needs before it begins.
    watch.growth_bytes_max = 64 * MIB
    hub.advance(TLS_HANDSHAKE_SECONDS + 1)
    assert late.receive()[:1] == b"\x16"
    for peer in held[:4000]:
        assert read_until_end(peer) == b""


# Before the first packet.


@over_any
def test_a_first_packet_that_never_comes(hub, over):
    check_ends_after(hub, OVER[over](hub), FIRST_SECONDS[over])


def test_the_plain_amqp_listener_waits_no_longer(hub):
    check_ends_after(hub, Socket(hub, 5672, tls=False), FIRST_SECONDS["amqp"])


@over_any
def test_a_first_packet_of_single_bytes_earns_no_time(hub, hostile, over):
    peer = OVER[over](hub)
    if over.startswith("mqtt"):
        packet = mqtt_connect(hub, hostile)
    else:
        # A whole header, then an `open` that takes for ever.
        peer.send(b"AMQP\x00\x01\x00\x00")
        assert exactly(peer, 8)
        packet = struct.pack(">IBBH", 512, 2, 0, 0) + bytes.fromhex("005310c0")
    seconds = FIRST_SECONDS[over]
    for at in range(0, 10):
        peer.send(packet[at : at + 1])
        hub.advance((seconds - 1) / 10)
    check_open(peer)
    hub.advance(2)
    # AMQP has a form for it: `open`, then `close` with a reason.
    got = read_until_end(peer)
    assert (got == b"") if over.startswith("mqtt") else (b"amqp:" in got), got


def test_a_websocket_that_is_asked_for_byte_by_byte(hub):
    peer = Socket(hub, PORTS["https"])
    request = upgrade(hub, "mqtt")
    for at in range(FIRST_SECONDS["mqtt"] - 1):
        peer.send(request[at : at + 1])
        hub.advance(1)
    check_open(peer)
    hub.advance(2)
    assert read_until_end(peer) == b""


@over_mqtt
@pytest.mark.parametrize(
    "length", [UNAUTHENTICATED_BYTES_MAX, PACKET_BYTES_MAX, 268_435_455], ids=lambda n: f"{n}-bytes"
)
def test_a_large_connect_is_refused_when_it_is_announced(hub, over, length):
    peer = OVER[over](hub)
    peer.send(mqtt_packet(0x10, length=length))
    # Not a byte of it had to come.
    assert read_until_end(peer) == b""


@over_mqtt
def test_a_connect_of_just_less_is_held_and_refused(hub, hostile, over):
    peer = OVER[over](hub)
    peer.send(mqtt_connect(hub, hostile, password="x" * (UNAUTHENTICATED_BYTES_MAX - 300)))
    assert read_until_end(peer) == b"\x20\x02\x00\x05"


def test_half_a_connect_on_a_thousand_connections(hub, watch):
    # 16 KiB each is 16 MiB; TLS has its buffers besides.
    watch.growth_bytes_max = 96 * MIB
    peers = [Socket(hub, PORTS["mqtt"]) for _ in range(1000)]
    for peer in peers:
        announced = UNAUTHENTICATED_BYTES_MAX - 16
        peer.send(mqtt_packet(0x10, b"x" * (announced - 1), length=announced))
    check_open(peers[0])
    hub.advance(FIRST_SECONDS["mqtt"] + 1)
    for peer in peers:
        assert read_until_end(peer) == b""


@over_mqtt
@pytest.mark.parametrize(
    "packet",
    [
        b"\x10\xff\xff\xff\xff\x01",
        b"\x10\x80\x80\x80\x80\x80",
        mqtt_packet(0x10),
        mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x02\x00"),
        mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x03\x00\x3c" + mqtt_text("a")),
        mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x02\x00\x3c\xff\xffa"),
        mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x02\x00\x3c" + mqtt_text(b"\xff\xfe")),
        mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x02\x00\x3c" + mqtt_text(b"a\0b")),
        mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x3e\x00\x3c" + mqtt_text("a")),
        mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x42\x00\x3c" + mqtt_text("a")),
        mqtt_packet(0x10, mqtt_text("M" * 10_000) + b"\x04\x02\x00\x3c" + mqtt_text("a")),
        mqtt_packet(0x1F, mqtt_text("MQTT") + b"\x04\x02\x00\x3c" + mqtt_text("a")),
        mqtt_publish("devices/a/messages/events/"),
        mqtt_subscribe("#"),
        mqtt_packet(0xC0),
        mqtt_packet(0xE0),
        b"\x00" * 16,
        b"\xff" * 16,
    ],
    ids=[
        "length-of-5-bytes", "length-without-end", "empty", "cut-off", "reserved-flag",
        "client-id-longer-than-packet", "client-id-no-utf-8", "client-id-with-nul",
        "will-of-qos-3-and-missing", "password-without-user", "protocol-name-of-10-kb",
        "wrong-flags", "publish", "subscribe", "pingreq", "disconnect", "zeros", "ones",
    ],
)
def test_a_bad_first_packet_ends_the_connection_without_an_answer(hub, over, packet):
    peer = OVER[over](hub)
    peer.send(packet)
    assert read_until_end(peer) == b""


# Devices that are signed in over MQTT.


@over_mqtt
@pytest.mark.parametrize(
    "packet",
    [
        b"\x32\xff\xff\xff\xff\x01",
        mqtt_packet(0x32, length=PACKET_BYTES_MAX),
        mqtt_packet(0x32, length=268_435_455),
        mqtt_publish(""),
        mqtt_packet(0x32, b"\x00\x00\x00\x00"),
        mqtt_packet(0x32, b"\xff\xff\x00\x01"),
        mqtt_packet(0x32, b""),
        mqtt_packet(0x32, b"\x00"),
        mqtt_publish(b"devices/\xff\xff/messages/events/"),
        mqtt_publish("devices/a/messages/events/\0"),
        mqtt_publish("x" * 65535),
        mqtt_packet(0x32, mqtt_text("a") + b"\x00\x00"),
        mqtt_subscribe(""),
        mqtt_subscribe("/" * 65535),
        mqtt_packet(0x82, b"\x00\x00" + mqtt_text("a") + b"\1"),
        mqtt_packet(0x82, b"\x00\x01" + mqtt_text("a") + b"\3"),
        mqtt_packet(0xA2, b"\x00\x01"),
        mqtt_packet(0x40, b"\x00"),
        mqtt_packet(0x40, b"\x00\x01\x00"),
        mqtt_packet(0xC0, b"\x00"),
        mqtt_packet(0x20, b"\x00\x00"),
        mqtt_packet(0x90, b"\x00\x01\x00"),
    ],
    ids=[
        "length-of-5-bytes", "320-kib-announced", "256-mb-announced", "empty-topic",
        "empty-topic-and-id-0", "topic-longer-than-packet", "empty-publish", "publish-of-1-byte",
        "topic-no-utf-8", "topic-with-nul", "topic-of-64-kb", "packet-id-0", "empty-filter",
        "filter-of-64-kb", "subscribe-id-0", "subscribe-qos-3", "unsubscribe-nothing",
        "puback-too-short", "puback-too-long", "pingreq-with-payload", "connack", "suback",
    ],
)
def test_a_bad_packet_ends_the_connection_without_an_answer(hub, hostile, over, packet):
    peer = mqtt_device(hub, hostile, over)
    peer.send(packet)
    assert read_until_end(peer) == b""


@over_mqtt
def test_a_second_connect_ends_the_connection(hub, hostile, over):
    peer = mqtt_device(hub, hostile, over)
    peer.send(mqtt_connect(hub, hostile))
    assert read_until_end(peer) == b""


@over_mqtt
def test_half_a_packet_and_then_silence(hub, hostile, over):
    peer = mqtt_device(hub, hostile, over, keep_alive=KEEP_ALIVE_SECONDS)
    peer.send(mqtt_packet(0x32, b"x" * 1000, length=PACKET_BYTES_MAX - 16))
    check_ends_after(hub, peer, SILENCE_SECONDS_MAX)


@over_mqtt
def test_a_packet_of_single_bytes_has_half_an_hour(hub, hostile, over):
    # A client that sends is not silent, but one packet may not take for ever.
    peer = mqtt_device(hub, hostile, over, keep_alive=KEEP_ALIVE_SECONDS)
    peer.send(mqtt_packet(0x32, b"x", length=PACKET_BYTES_MAX - 16))
    check_open(peer)
    for _ in range(29):
        hub.advance(PACKET_SECONDS_MAX / 30)
        peer.send(b"x")
        # So that it has been read before the clock moves on.
        check_open(peer, 0.1)
    check_ends_after(hub, peer, PACKET_SECONDS_MAX / 30, margin=10)


def test_half_packets_of_many_devices_are_held_up_to_a_bound(hub, watch, fleet):
    # The setting limits.incomplete_packet_bytes, and what TLS has for each; whoever began first goes.
    watch.growth_bytes_max = (64 + 48) * MIB
    half = mqtt_packet(0x32, b"x" * 300_000, length=PACKET_BYTES_MAX - 16)
    password = service.service_token(hub, policy="device")
    peers = []
    for device in fleet(300):
        peer = Socket(hub, PORTS["mqtt"])
        peer.send(mqtt_connect(hub, device, password=password))
        assert exactly(peer, 4) == b"\x20\x02\x00\x00"
        peer.send(half)
        peers.append(peer)
    assert read_until_end(peers[0]) == b""
    check_open(peers[-1])


@over_mqtt
@pytest.mark.parametrize("what", ["pings", "twins", "subscriptions"])
def test_a_client_that_asks_and_never_reads(hub, hostile, over, what):
    peer = mqtt_device(hub, hostile, over, keep_alive=KEEP_ALIVE_SECONDS, receive_buffer=4096)
    # At once, so that the hub is asked for the answers while it can write none of them.
    asked = {
        "pings": mqtt_packet(0xC0) * 1000,
        "twins": mqtt_subscribe("$iothub/twin/res/#")
        + mqtt_packet(0x30, mqtt_text("$iothub/twin/GET/?$rid=" + "7" * 500)) * 200,
        "subscriptions": mqtt_subscribe(*["$iothub/twin/res/#"] * 500),
    }[what]
    check_is_held_back(peer, asked)
    # What it took to send it counts as well.
    hub.advance(SILENCE_SECONDS_MAX - 10)
    assert is_connected(hub, hostile)
    hub.advance(11 + LINGER_SECONDS)
    wait_until(lambda: not is_connected(hub, hostile), "a client that never reads is kept")


@over_mqtt
def test_messages_for_a_client_that_never_reads(hub, watch, hostile, over):
    # Of its queue's 50 messages of 64 KB none may be lost, and few may wait in the hub's memory.
    fill_queue(hub, hostile)
    peer = mqtt_device(hub, hostile, over, keep_alive=KEEP_ALIVE_SECONDS, receive_buffer=4096)
    peer.send(mqtt_subscribe(f"devices/{hostile.id}/messages/devicebound/#"))
    hub.advance(SILENCE_SECONDS_MAX - 10)
    assert is_connected(hub, hostile)
    hub.advance(11 + LINGER_SECONDS)
    wait_until(lambda: not is_connected(hub, hostile), "a client that never reads is kept")
    waiting = hub.admin("GET", f"/api/c2d/devices/{hostile.id}/messages")["messages"]
    assert len(waiting) == 50


def test_five_thousand_filters_are_answered_one_by_one(hub, hostile):
    peer = mqtt_device(hub, hostile)
    peer.send(mqtt_subscribe(*["$iothub/twin/res/#"] * 5000))
    answer = exactly(peer, 1 + 2 + 2 + 5000)
    assert answer[:1] == b"\x90" and answer[-5000:] == b"\x01" * 5000


def test_a_property_bag_of_ten_thousand_properties(hub, hostile):
    peer = mqtt_device(hub, hostile)
    bag = "&".join(f"{number:x}=" for number in range(10_000))
    peer.send(mqtt_publish(f"devices/{hostile.id}/messages/events/{bag}"))
    assert exactly(peer, 4) == b"\x40\x02\x00\x01"


@over_mqtt
def test_a_device_that_takes_over_from_itself_without_end(hub, hostile, over):
    before = mqtt_device(hub, hostile, over)
    for _ in range(100):
        after = mqtt_device(hub, hostile, over)
        assert read_until_end(before) == b""
        before = after
    check_open(before)


# WebSocket.


@pytest.mark.parametrize("subprotocol", ["mqtt", "AMQPWSB10"])
@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (ws_frame(2, b"x", masked=False), 1002),
        (ws_frame(0, b"x"), 1002),
        (ws_frame(2, b"", final=False) + ws_frame(2, b""), 1002),
        (ws_frame(1, b"text"), 1003),
        (ws_frame(3), 1002),
        (ws_frame(11), 1002),
        (ws_frame(2, b"x", reserved=4), 1002),
        (ws_frame(9, b"x", final=False), 1002),
        (ws_frame(9, b"x" * 126), 1002),
        (ws_frame(9, length=1 << 62), 1002),
        (ws_frame(8, b"x"), 1002),
        (ws_frame(8, struct.pack(">H", 1005)), 1002),
        (ws_frame(8, struct.pack(">H", 65535)), 1002),
        (ws_frame(8), 1000),
    ],
    ids=[
        "unmasked", "continuation-first", "two-beginnings", "text", "reserved-data",
        "reserved-control", "reserved-bit", "fragmented-ping", "ping-of-126-bytes",
        "ping-of-2-62-bytes", "close-of-1-byte", "close-1005", "close-65535", "close",
    ],
)
def test_a_bad_frame_closes_with_the_code_for_it(hub, subprotocol, frames, code):
    peer = WebSocket(hub, subprotocol)
    peer.below.send(frames)
    assert read_until_end(peer) == b""
    assert peer.close_code == code


def test_fragments_without_end_earn_no_time_and_no_memory(hub):
    peer = WebSocket(hub, "mqtt")
    # A message that never ends, of frames of one byte; the packet in it does not end either.
    peer.below.send(ws_frame(2, mqtt_packet(0x10, length=16_000), final=False))
    for _ in range(14):
        peer.below.send(ws_frame(0, b"x", final=False) * 1000)
        hub.advance(1)
    check_open(peer)
    hub.advance(2)
    assert read_until_end(peer) == b""


def test_empty_fragments_without_end_earn_no_time(hub):
    peer = WebSocket(hub, "mqtt")
    peer.below.send(ws_frame(2, final=False))
    for _ in range(14):
        peer.below.send(ws_frame(0, final=False) * 10_000)
        hub.advance(1)
    check_open(peer)
    hub.advance(2)
    assert read_until_end(peer) == b""


def test_a_frame_of_two_to_the_62_is_read_as_it_comes(hub, hostile):
    peer = WebSocket(hub, "mqtt")
    packets = mqtt_connect(hub, hostile) + mqtt_packet(0xC0)
    peer.below.send(ws_frame(2, packets, length=1 << 62))
    assert exactly(peer, 6) == b"\x20\x02\x00\x00\xd0\x00"


def test_half_a_frame_head_counts_as_silence(hub):
    peer = WebSocket(hub, "mqtt")
    peer.below.send(b"\x82\xff\x00\x00")
    check_ends_after(hub, peer, FIRST_SECONDS["mqtt"])


def test_pings_without_end_are_answered_to_who_reads(hub, hostile):
    peer = mqtt_device(hub, hostile, "mqtt-ws")
    for _ in range(10):
        peer.below.send(ws_frame(9, b"x" * 125) * 100)
        peer.send(mqtt_packet(0xC0))
        assert exactly(peer, 2) == b"\xd0\x00"
    assert peer.seen[WebSocket.PONG] == 1000


def test_pings_without_end_of_a_client_that_never_reads_end_its_connection(hub, hostile):
    peer = mqtt_device(hub, hostile, "mqtt-ws", receive_buffer=4096)
    pings = ws_frame(9, b"x" * 125) * 1000
    with pytest.raises(Ended):
        for _ in range(500):
            peer.below.send_unread(pings)
    wait_until(lambda: not is_connected(hub, hostile), "the connection is kept")


def test_a_websocket_that_is_never_closed_by_its_client(hub, hostile):
    peer = mqtt_device(hub, hostile, "mqtt-ws", receive_buffer=4096)
    hub.admin("POST", "/api/test/connections/cut", {"deviceId": hostile.id})
    read_until_end(peer)
