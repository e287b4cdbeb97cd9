"""No acknowledgement leaves before the sync of its message, shown from the hub's system calls."""

import re
import socket
import struct
import threading
from dataclasses import replace

import proton
import proton.utils
import pytest
import websocket

from hub import Hub
from service import change_settings, device_token, service_token
from system_calls import SYNCS, Traced, calls_in, sent_after, synced, unproven, writes_of

MARKS = re.compile(rb"<mark \d{5}>")
BURSTS, BURST = 40, 50
WAIT_SECONDS_MAX = 60


def mark(number):
    return b"<mark %05d>" % number


@pytest.fixture
def traced(tmp_path, monkeypatch):
    """A hub with plain listeners, under strace."""
    hub = Hub(tmp_path)
    for listener in ("mqtt", "http"):
        hub.settings += [f"listeners.{listener}.enabled=true"]
        hub.settings += [f"listeners.{listener}.address={hub.address}"]
    traced = Traced(hub, tmp_path)
    traced.start(monkeypatch)
    yield traced
    hub.stop()


def prove(calls, replies):
    """Checks the call that sent each message's reply, and that the check can fail."""
    everything = {mark(number) for number in range(BURSTS * BURST)}
    assert replies.keys() == everything
    assert unproven(calls, MARKS, replies) == set()

    # Messages shared their syncs, and there were many, so that it is a proof about groups.
    syncs = synced(calls, writes_of(calls, MARKS))
    assert BURSTS / 2 <= len(set(syncs.values())) < BURSTS * BURST / 2

    # Nothing is taken for shown without syncs, nor with syncs that take longer than all replies.
    assert unproven([c for c in calls if c.name not in SYNCS], MARKS, replies) == everything
    slow = [replace(c, end=float("inf")) if c.name in SYNCS else c for c in calls]
    assert unproven(slow, MARKS, replies) == everything
    # One reply too early is found too.
    early = replace(replies[mark(7)], start=syncs[mark(7)].start - 1)
    assert unproven(calls, MARKS, replies | {mark(7): early}) == {mark(7)}


def test_no_puback_leaves_before_the_sync_of_its_group(traced):
    device = traced.hub.create_device("traced")
    with socket.create_connection((traced.hub.address, 1883), WAIT_SECONDS_MAX) as connection:
        user = f"{traced.hub.address}/{device.id}/?api-version=2021-04-12"
        password = device_token(traced.hub, device)
        texts = b"".join(text(part) for part in (device.id, user, password))
        connection.sendall(packet(0x10, text("MQTT") + b"\x04\xc2\x00\x00" + texts))
        assert read(connection, 4)[3] == 0
        topic = text(f"devices/{device.id}/messages/events/")
        for first in range(0, BURSTS * BURST, BURST):
            publishes = (
                packet(0x32, topic + struct.pack(">H", number + 1) + mark(number) + b"." * 100)
                for number in range(first, first + BURST)
            )
            connection.sendall(b"".join(publishes))
            read(connection, 4 * BURST)

    calls = traced.stop()
    # After the CONNACK come PUBACKs.
    sent = sent_after(calls, b"\x20\x02\x00\x00")
    replies = {}
    for at in range(4, len(sent.data), 4):
        kind, packet_id = struct.unpack(">HH", sent.data[at : at + 4])
        assert kind == 0x4002
        replies[mark(packet_id - 1)] = sent.call_at(at)
    prove(calls, replies)


def test_no_message_to_a_device_is_accepted_before_its_sync(traced, tmp_path):
    hub = traced.hub
    hub.create_device("away")
    change_settings(hub, tmp_path, maxQueueDepth=BURSTS * BURST)
    # The service endpoint has no plain listener but that of WebSocket.
    connection = proton.utils.BlockingConnection(
        f"amqp://{hub.address}:{bridge(hub)}",
        timeout=WAIT_SECONDS_MAX,
        allowed_mechs="PLAIN",
        allow_insecure_mechs=True,
        user="service@sas.root.hub",
        password=service_token(hub),
    )
    sender = connection.create_sender("/messages/devicebound").link
    for first in range(0, BURSTS * BURST, BURST):
        connection.wait(lambda: sender.credit >= BURST)
        deliveries = [
            sender.send(
                proton.Message(
                    address="/devices/away/messages/devicebound", body=mark(number), inferred=True
                )
            )
            for number in range(first, first + BURST)
        ]
        connection.wait(lambda: all(delivery.settled for delivery in deliveries))
        assert {delivery.remote_state for delivery in deliveries} == {proton.Delivery.ACCEPTED}
    connection.close()
    calls = traced.stop()
    sent = sent_after(calls, b"HTTP/1.1 101 ")
    prove(calls, {mark(number): sent.call_at(at) for number, at in dispositions(sent.data)})


def bridge(hub):
    """A port at which the hub's AMQP over plain WebSocket is AMQP over TCP, once."""
    listener = socket.create_server((hub.address, 0))

    def serve():
        with listener, listener.accept()[0] as client:
            url = f"ws://{hub.address}/$iothub/websocket"
            over = websocket.create_connection(url, WAIT_SECONDS_MAX, subprotocols=["AMQPWSB10"])
            back = threading.Thread(target=answer, args=(client, over), daemon=True)
            back.start()
            while data := client.recv(65536):
                over.send_binary(data)
            over.close()
            back.join()

    def answer(client, over):
        try:
            while data := over.recv():
                client.sendall(data)
        except (OSError, websocket.WebSocketException):
            # Either side is gone.
            pass

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def dispositions(data):
    """The deliveries that were settled, and where in an answer over WebSocket that begins."""
    amqp, places = b"", []
    at = data.index(b"\r\n\r\n") + 4
    while at < len(data):
        # A frame of a server (RFC 6455, 5.2): not masked.
        kind, size = data[at], data[at + 1]
        head, form = {126: (4, ">H"), 127: (10, ">Q")}.get(size, (2, None))
        if form:
            (size,) = struct.unpack(form, data[at + 2 : at + head])
        if kind & 0x0F in (0, 2):
            amqp += data[at + head : at + head + size]
            places += [at] * size
        at += head + size
    at = 0
    while at < len(amqp):
        # Protocol headers, of SASL and of AMQP.
        if amqp[at : at + 4] == b"AMQP":
            at += 8
            continue
        size, offset = struct.unpack(">IB", amqp[at : at + 5])
        body = amqp[at + 4 * offset : at + size]
        # An empty frame only keeps the connection alive.
        if body:
            performative = proton.Data()
            performative.decode(body)
            performative.next()
            described = performative.get_object()
            # A disposition (OASIS AMQP 1.0, 2.7.6): role, first, last, settled, state.
            if described.descriptor == 0x15:
                _, first, last = described.value[:3]
                for number in range(first, (first if last is None else last) + 1):
                    yield number, places[at]
        at += size


#: One thread writes messages 1 and 2 to file 9 and syncs; another answers on connection 5.
TRACE = r"""
7 pwrite64(9, "\x31", 1, 0) = 1
7 fdatasync(9 <unfinished ...>
8 accept4(3, {sa_family=AF_INET, sin_port=htons(1), sin_addr=inet_addr("127.0.0.1")}, [128 => 16], SOCK_CLOEXEC) = 5
7 <... fdatasync resumed>) = 0
8 sendto(5, "\x61", 1, MSG_NOSIGNAL, NULL, 0) = 1
7 pwritev(9, [{iov_base="\x00", iov_len=1}, {iov_base="\x32", iov_len=1}], 2, 1) = 2
7 fdatasync(9 <unfinished ...>
8 writev(5, [{iov_base="\x62", iov_len=1}], 1 <unfinished ...>
7 <... fdatasync resumed>) = 0
8 <... writev resumed>) = 1
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("", ""), {b"2"}),
        # The answer begins when the sync has ended.
        (("8 writev(5, [{iov_base=\"\\x62\", iov_len=1}], 1 <unfinished ...>\n", ""), set()),
        # Another file's sync, one that fails, and one that begins before the write ends.
        (("fdatasync(9 <unfinished ...>\n8 accept4", "fdatasync(8 <unfinished ...>\n8 accept4"), {b"1", b"2"}),
        (("resumed>) = 0\n8 sendto", "resumed>) = -1 EIO (Input/output error)\n8 sendto"), {b"1", b"2"}),
        (("7 pwritev(9, [{iov_base", "7 fdatasync(9) = 0\n7 pwritev(9, [{iov_base"), {b"2"}),
    ],
    ids=["as-it-is", "after", "other-file", "failed", "too-early"],
)
def test_what_counts_as_synced(change, expected):
    trace = TRACE.replace(*change) if change[0] else TRACE
    if expected == set():
        trace = trace.replace("<... writev resumed>", 'writev(5, [{iov_base="\\x62", iov_len=1}], 1')
    assert change[0] == "" or trace != TRACE
    calls = calls_in(trace.strip().splitlines())
    sent = sent_after(calls, b"a")
    assert sent.data == b"ab"
    replies = {b"1": sent.call_at(0), b"2": sent.call_at(1)}
    assert unproven(calls, re.compile(b"[12]"), replies) == expected


def text(value):
    """A string of MQTT."""
    encoded = value.encode()
    return struct.pack(">H", len(encoded)) + encoded


def packet(kind, body):
    """A packet of MQTT."""
    length, rest = b"", len(body)
    while True:
        rest, low = divmod(rest, 128)
        length += bytes([low | (0x80 if rest else 0)])
        if not rest:
            return bytes([kind]) + length + body


def read(connection, size):
    """Exactly so many bytes."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "the hub closed the connection"
        data += part
    return data
