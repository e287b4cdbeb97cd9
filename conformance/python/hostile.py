"""Peers that break the rules: raw bytes over any transport, and what the hub must be like afterwards."""

import base64
import contextlib
import os
import re
import socket
import ssl
import struct
import time
from pathlib import Path

import proton

import service

WAIT_SECONDS_MAX = 20
#: Within which nothing comes when nothing is to come.
SILENCE_SECONDS = 0.3
MIB = 1024 * 1024

#: Messages that wait for one device, and bytes of one of them.
QUEUE_MESSAGES_MAX = 50
QUEUED_BYTES_MAX = 64 * 1024

PORTS = {"mqtt": 8883, "amqp": 5671, "https": 443}
#: Bytes by which the hub's memory may grow at its highest while one test runs, unless the test says more.
GROWTH_BYTES_MAX = 24 * MIB
#: Bytes with which it is started anew before a test: what it has kept hides what it takes.
MEMORY_BYTES_MAX = 48 * MIB
#: Lines that it may log meanwhile. It tells of each kind of ending once in ten seconds of its clock.
LINES_MAX = 20


class Ended(Exception):
    """The hub has ended the connection."""


class Socket:
    """A TCP connection to the hub, with TLS or without."""

    #: Those that the present test has made, for it to let go of.
    made = []

    def __init__(self, hub, port, *, tls=True, receive_buffer=None, certificate=None):
        raw = socket.socket()
        self.made.append(self)
        self.socket = raw
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(WAIT_SECONDS_MAX)
        raw.connect((hub.address, port))
        if tls:
            context = ssl.create_default_context(cafile=str(hub.ca))
            if certificate:
                context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(raw, server_hostname=hub.address)

    def send(self, data):
        """Sends all of it, or until the hub has ended the connection."""
        self.socket.settimeout(WAIT_SECONDS_MAX)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self.socket.sendall(data)

    def send_unread(self, data):
        """Sends until the hub takes no more; returns how many bytes went."""
        self.socket.settimeout(1)
        sent = 0
        try:
            while sent < len(data):
                sent += self.socket.send(data[sent : sent + 16 * 1024])
        except (TimeoutError, ssl.SSLWantWriteError):
            pass
        except OSError:
            raise Ended(sent) from None
        return sent

    def receive(self, seconds=WAIT_SECONDS_MAX):
        """What comes next; nothing when nothing comes in time."""
        self.socket.settimeout(seconds)
        try:
            piece = self.socket.recv(65536)
        except (TimeoutError, ssl.SSLWantReadError):
            return b""
        except OSError:
            raise Ended from None
        if not piece:
            raise Ended
        return piece

    def close(self):
        self.socket.close()

    def reset(self):
        """Ends the connection without a word, as a machine does that is gone."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class WebSocket:
    """A WebSocket whose every frame the test writes."""

    TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

    def __init__(self, hub, subprotocol, **options):
        self.below = Socket(hub, 443, **options)
        self.below.send(upgrade(hub, subprotocol))
        self.held = b""
        while b"\r\n\r\n" not in self.held:
            self.held += self.below.receive()
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        #: The hub's close code, and how many frames of each kind it has sent.
        self.close_code, self.seen = None, {}

    def send(self, data):
        self.below.send(ws_frame(self.BINARY, data))

    def send_unread(self, data):
        return self.below.send_unread(ws_frame(self.BINARY, data))

    def receive(self, seconds=WAIT_SECONDS_MAX):
        deadline = time.monotonic() + seconds
        while True:
            payload = self._take()
            if payload:
                return payload
            if time.monotonic() > deadline:
                return b""
            self.held += self.below.receive(max(deadline - time.monotonic(), 0.01))

    def _take(self):
        payload = b""
        while len(self.held) >= 2:
            first, second = self.held[:2]
            length, at = second & 0x7F, 2
            if length == 126:
                length, at = int.from_bytes(self.held[2:4], "big"), 4
            elif length == 127:
                length, at = int.from_bytes(self.held[2:10], "big"), 10
            if len(self.held) < at + length or second & 0x80:
                break
            body, self.held = self.held[at : at + length], self.held[at + length :]
            opcode = first & 0xF
            self.seen[opcode] = self.seen.get(opcode, 0) + 1
            if opcode == self.CLOSE:
                self.close_code = int.from_bytes(body[:2], "big")
                # The hub waits for this, though not for long.
                with contextlib.suppress(OSError):
                    self.below.send(ws_frame(self.CLOSE, body))
            elif opcode in (0, self.BINARY):
                payload += body
        return payload

    def close(self):
        self.below.close()


def upgrade(hub, subprotocol, path="/$iothub/websocket", **headers):
    """A request for a WebSocket."""
    key = base64.b64encode(b"0123456789abcdef").decode()
    fields = {
        "Host": hub.address,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Protocol": subprotocol,
    } | headers
    lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
    return f"GET {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def ws_frame(opcode, payload=b"", *, final=True, masked=True, reserved=0, length=None):
    """A frame of a client; `length` is what it announces, when that is not what it holds."""
    announced = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    head = bytes([(0x80 if final else 0) | reserved << 4 | opcode])
    if announced < 126:
        head += bytes([mask | announced])
    elif announced < 65536:
        head += bytes([mask | 126]) + struct.pack(">H", announced)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", announced)
    # A mask of zeros leaves the payload as it is.
    return head + (b"\0\0\0\0" if masked else b"") + payload


#: How the packets of MQTT and AMQP come to the hub.
OVER = {
    "mqtt": lambda hub, **how: Socket(hub, PORTS["mqtt"], **how),
    "mqtt-ws": lambda hub, **how: WebSocket(hub, "mqtt", **how),
    "amqp": lambda hub, **how: Socket(hub, PORTS["amqp"], **how),
    "amqp-ws": lambda hub, **how: WebSocket(hub, "AMQPWSB10", **how),
}


def read_until_end(peer, seconds=WAIT_SECONDS_MAX):
    """Everything until the hub ends the connection, which it must do in this time."""
    deadline = time.monotonic() + seconds
    got = b""
    while True:
        left = deadline - time.monotonic()
        assert left > 0, f"the hub has not ended the connection; {len(got)} bytes came: {got[-64:]}"
        try:
            got += peer.receive(left)
        except Ended:
            return got


def check_open(peer, seconds=SILENCE_SECONDS):
    """That the hub keeps the connection; returns what it said."""
    got = b""
    while True:
        try:
            piece = peer.receive(seconds)
        except Ended:
            raise AssertionError(f"the hub has ended the connection already: {got}") from None
        if not piece:
            return got
        got += piece


def check_ends_after(hub, peer, seconds, *, said=b"", margin=1):
    """That the hub keeps a silent connection for so long by its clock, and no longer."""
    # What was sent has come before the clock moves.
    before = check_open(peer)
    hub.advance(seconds - margin)
    before += check_open(peer)
    hub.advance(2 * margin)
    got = before + read_until_end(peer)
    assert got == said, got


# MQTT.


def mqtt_packet(kind, rest=b"", *, length=None):
    """A packet whose first byte is `kind`; `length` is what it announces."""
    left = len(rest) if length is None else length
    head = bytes([kind])
    while True:
        left, digit = divmod(left, 128)
        head += bytes([digit | (0x80 if left else 0)])
        if not left:
            return head + rest


def mqtt_text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">H", len(value)) + value


def mqtt_connect(hub, device, *, keep_alive=60, clean=True, password=None):
    user = f"{hub.address}/{device.id}/?api-version=2021-04-12"
    password = service.device_token(hub, device) if password is None else password
    return mqtt_packet(
        0x10,
        mqtt_text("MQTT") + bytes([4, 0xC2 if clean else 0xC0]) + struct.pack(">H", keep_alive)
        + mqtt_text(device.id) + mqtt_text(user) + mqtt_text(password),
    )


def mqtt_publish(topic, payload=b"", packet_id=1):
    return mqtt_packet(0x32, mqtt_text(topic) + struct.pack(">H", packet_id) + payload)


def mqtt_subscribe(*topics, packet_id=1):
    rest = struct.pack(">H", packet_id) + b"".join(mqtt_text(topic) + b"\1" for topic in topics)
    return mqtt_packet(0x82, rest)


def mqtt_device(hub, device, over="mqtt", *, keep_alive=60, clean=True, **how):
    """A connection on which a device is signed in."""
    peer = OVER[over](hub, **how)
    peer.send(mqtt_connect(hub, device, keep_alive=keep_alive, clean=clean))
    assert exactly(peer, 4)[2:] == b"\0\0"
    return peer


def exactly(peer, count):
    """The next so many bytes."""
    got = b""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while len(got) < count:
        assert time.monotonic() < deadline, got
        got += peer.receive(1)
    assert len(got) == count, got
    return got


# HTTP.


def http_request(hub, method, path, headers=(), body=b""):
    """A request as bytes; a path without a query gets one."""
    path = path if "?" in path else f"{path}?api-version=2021-04-12"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {hub.address}"]
    lines += [f"{name}: {value}" for name, value in dict(headers).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def events_path(device):
    return f"/devices/{device.id}/messages/events"


def by_token(hub, device):
    return {"Authorization": service.device_token(hub, device)}


def statuses(got):
    """The statuses of the answers in these bytes."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]


# What the hub is like.


class Watch:
    """Compares the hub's process with what it was before, and demands that it serves as before.

    A test may raise the bounds where it sends what the hub is to hold.
    """

    def __init__(self, hub, good):
        self.hub, self.good = hub, good
        self.growth_bytes_max, self.lines_max = GROWTH_BYTES_MAX, LINES_MAX
        self.process = Path(f"/proc/{hub.process.pid}")

    def __enter__(self):
        # The highest so far is forgotten.
        (self.process / "clear_refs").write_text("5")
        self.bytes_before = memory(self.hub)
        self.lines_before = self._lines()
        return self

    def __exit__(self, kind, error, trace):
        while Socket.made:
            Socket.made.pop().close()
        if kind is None:
            self.check()

    def check(self):
        assert self.hub.process.poll() is None, self.hub.log()[-4000:]
        check_serves(self.hub, self.good)
        peak = memory(self.hub, "VmHWM") - self.bytes_before
        most = self.growth_bytes_max
        assert peak <= most, f"{peak / MIB:.1f} MiB, {most / MIB:.1f} MiB at most"
        lines = self._lines()[len(self.lines_before) :]
        assert len(lines) <= self.lines_max, f"{len(lines)}: {lines[:5]} ... {lines[-5:]}"
        assert not [line for line in lines if "panicked" in line or "ERROR" in line], lines

    def _lines(self):
        return self.hub.log().splitlines()


def check_serves(hub, device):
    """That a device that keeps to the rules is served over MQTT, HTTPS and AMQP."""
    peer = mqtt_device(hub, device)
    peer.send(mqtt_publish(f"devices/{device.id}/messages/events/"))
    assert exactly(peer, 4) == b"\x40\x02\x00\x01"
    peer.close()
    answer = service.https(
        hub, "POST", events_path(device), authorization=service.device_token(hub, device)
    )
    assert answer.status_code == 204, answer.text
    with service.amqp(hub) as connection:
        connection.create_sender("/messages/devicebound").close()


def memory(hub, which="VmRSS"):
    """Bytes of memory that the hub's process has in use, or had at its highest with `VmHWM`."""
    status = Path(f"/proc/{hub.process.pid}/status").read_text()
    (line,) = re.findall(rf"^{which}:\s+(\d+) kB", status, re.M)
    return int(line) * 1024


def open_files(hub):
    """How many files and sockets the hub's process has open."""
    return len(os.listdir(f"/proc/{hub.process.pid}/fd"))


def wait_until(holds, what):
    """Waits for something that the hub does by itself in a moment."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_until_quiet(hub):
    """Waits until the hub has done what it was asked: it takes no more time of the processor."""
    clock = os.sysconf("SC_CLK_TCK")

    def ticks():
        fields = Path(f"/proc/{hub.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    deadline = time.monotonic() + WAIT_SECONDS_MAX
    before = ticks()
    while True:
        time.sleep(SILENCE_SECONDS)
        now = ticks()
        if now - before <= SILENCE_SECONDS * clock / 10:
            return
        assert time.monotonic() < deadline, "the hub goes on working"
        before = now


def is_connected(hub, device):
    """Whether the registry says so."""
    answer = service.https(hub, "GET", f"/devices/{device.id}")
    return answer.json()["connectionState"] == "Connected"


def fill_queue(hub, device):
    """Sends a device as many messages as may wait for it, of the largest size."""
    with service.amqp(hub) as connection:
        for number in range(QUEUE_MESSAGES_MAX):
            body = bytes([number]) * (QUEUED_BYTES_MAX - 100)
            address = f"/devices/{device.id}/messages/devicebound"
            service.send_on(connection, proton.Message(body=body, inferred=True, address=address))


def check_is_held_back(peer, asked):
    """That the hub stops reading before it has taken 64 MiB of requests."""
    went = 0
    burst = asked * (256 * 1024 // len(asked) + 1)
    while went < 64 * MIB:
        more = peer.send_unread(burst)
        went += more
        if more < len(burst):
            return
    raise AssertionError("the hub reads on although nobody takes its answers")
