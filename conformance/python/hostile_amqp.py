"""AMQP 1.0 byte by byte, so that a test can get each of them wrong."""

import struct
import time

import service
from hostile import OVER, WAIT_SECONDS_MAX, Ended

HEADER = b"AMQP\x00\x01\x00\x00"
SASL_HEADER = b"AMQP\x03\x01\x00\x00"

OPEN, BEGIN, ATTACH, FLOW, TRANSFER = 0x10, 0x11, 0x12, 0x13, 0x14
DISPOSITION, DETACH, END, CLOSE = 0x15, 0x16, 0x17, 0x18
MECHANISMS, INIT, OUTCOME = 0x40, 0x41, 0x44
SOURCE, TARGET = 0x28, 0x29

#: Of the peer's end of a link.
SENDER, RECEIVER = False, True

FRAME_BYTES_MAX = 65536


class Symbol(str):
    """A name of the protocol."""


class Raw(bytes):
    """A value that is encoded already."""


class Ubyte(int):
    """One byte."""


def encode(value):
    """A value; whole numbers are `uint` unless they say otherwise."""
    match value:
        case Raw():
            return bytes(value)
        case None:
            return b"\x40"
        case True:
            return b"\x41"
        case False:
            return b"\x42"
        case Ubyte():
            return bytes([0x50, value])
        case int():
            return b"\x70" + struct.pack(">I", value)
        case Symbol():
            return b"\xb3" + struct.pack(">I", len(value)) + value.encode()
        case str():
            text = value.encode()
            return b"\xb1" + struct.pack(">I", len(text)) + text
        case bytes():
            return b"\xb0" + struct.pack(">I", len(value)) + value
        case dict():
            return compound(0xD1, [each for pair in value.items() for each in pair])
        case list():
            return compound(0xD0, value)
    raise TypeError(value)


def compound(code, values, *, count=None, size=None):
    """A list or map; `count` and `size` are what it announces, when that is not true."""
    content = b"".join(map(encode, values))
    size = len(content) + 4 if size is None else size
    return bytes([code]) + struct.pack(">II", size, len(values) if count is None else count) + content


def described(code, *fields, **how):
    """A composite type: a performative, a source."""
    return Raw(bytes([0x00, 0x53, code]) + compound(0xD0, fields, **how))


def frame(body, channel=0, *, kind=0, offset=2, size=None):
    """A frame; `size` is what it announces, when that is not true."""
    size = 8 + len(body) if size is None else size
    return struct.pack(">IBBH", size, offset, kind, channel) + body


def performative(code, *fields, channel=0, payload=b""):
    return frame(described(code, *fields) + payload, channel)


def sasl_plain(user, password):
    init = described(INIT, Symbol("PLAIN"), f"\0{user}\0{password}".encode())
    return frame(init, kind=1)


def open_(frame_bytes_max=FRAME_BYTES_MAX, *, idle=None, properties=None):
    fields = ["hostile", "localhost", frame_bytes_max, Raw(b"\x60\xff\xff"), idle]
    return performative(OPEN, *fields, None, None, None, None, properties)


def begin(channel=0, *, window=1 << 20):
    return performative(BEGIN, None, 0, window, window, channel=channel)


def attach(handle, role, address, *, channel=0, name=None, extra=()):
    """A link from or to an address; the other end is called `there`."""
    name = f"link-{channel}-{handle}" if name is None else name
    here, there = described(SOURCE, address), described(TARGET, address)
    ends = (here, described(TARGET, "there")) if role is RECEIVER else (described(SOURCE, "there"), there)
    fields = [name, handle, role, None, None, *ends, None, None, None if role is RECEIVER else 0]
    return performative(ATTACH, *fields, *extra, channel=channel)


def credit(handle, count, *, channel=0, echo=False, delivery_count=0, window=1 << 20):
    fields = [0, window, 0, window, handle, delivery_count, count, None, False, echo]
    return performative(FLOW, *fields, channel=channel)


def transfer(handle, delivery, payload, *, channel=0, more=False, settled=False, tag=None):
    tag = struct.pack(">I", delivery) if tag is None else tag
    fields = [handle, delivery, tag, 0, settled, more]
    return performative(TRANSFER, *fields, channel=channel, payload=payload)


def data(body):
    """A message of one data section."""
    return b"\x00\x53\x75" + encode(body)


def put_token(token, name, *, number=1, reply_to="there", properties=()):
    """A request to `$cbs`."""
    about = {
        "operation": "put-token",
        "type": "servicebus.windows.net:sastoken",
        "name": name,
    } | dict(properties)
    message = described(0x73, number, None, "$cbs", None, reply_to)
    return message + b"\x00\x53\x74" + encode(about) + b"\x00\x53\x77" + encode(token)


class Peer:
    """An AMQP connection whose frames from the hub are told apart."""

    def __init__(self, hub, over, **how):
        self.below = OVER[over](hub, **how)
        self.held = b""
        #: Whether the hub has said `open`, after which it says why it ends the connection.
        self.opened = False

    def send(self, data):
        self.below.send(data)

    def send_unread(self, data):
        return self.below.send_unread(data)

    def frames(self, seconds=WAIT_SECONDS_MAX):
        """What comes, frame by frame as performative and body, until the connection ends or nothing comes."""
        while True:
            while len(self.held) >= 8 and len(self.held) >= (size := int.from_bytes(self.held[:4], "big")):
                whole, self.held = self.held[:size], self.held[size:]
                if size > 8:
                    self.opened |= whole[10] == OPEN
                    yield whole[10], whole
            try:
                piece = self.below.receive(seconds)
            except Ended:
                return
            if not piece:
                return
            self.held += piece

    def until(self, code):
        """The next frame with this performative."""
        seen = []
        for found, body in self.frames():
            if found == code:
                return body
            seen.append((hex(found), body))
        raise AssertionError(f"no {code:#x} came: {seen[-3:]}")

    def until_any(self, *codes):
        """The next frame with any of these performatives, with its performative."""
        for found in self.frames():
            if found[0] in codes:
                return found
        return None

    def check_quiet_or_closed(self):
        """The frames that come until nothing comes, or until the hub has ended the connection."""
        got = list(self.frames(0.3))
        if any(code == CLOSE for code, _ in got):
            got += self.to_the_end()
        return got

    def signs_of_life(self, seconds):
        """The empty frames that come in this time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.held += self.below.receive(left)
        while self.held.startswith(struct.pack(">I", 8)):
            self.held = self.held[8:]
            yield True

    def to_the_end(self, seconds=WAIT_SECONDS_MAX):
        """All frames until the hub ends the connection, which it must do in this time."""
        deadline = time.monotonic() + seconds
        got = []
        for found in self.frames(seconds):
            got.append(found)
            assert time.monotonic() < deadline, got[-3:]
        try:
            assert not self.below.receive(0.01)
        except Ended:
            return got
        raise AssertionError(f"the hub has not ended the connection: {got[-3:]}")

    def check_closed(self, condition):
        """That the hub closes the connection for this reason, and tells it."""
        got = self.to_the_end()
        closes = [body for code, body in got if code == CLOSE]
        assert len(closes) == 1 and condition.encode() in closes[0], (condition, got[-3:])

    def check_quiet(self, seconds=0.3):
        """That the hub keeps the connection; returns the frames that came."""
        got = list(self.frames(seconds))
        try:
            assert self.below.receive(0.01) == b""
        except Ended:
            raise AssertionError(f"the hub has ended the connection already: {got[-3:]}") from None
        return got


def unknown(hub, over, *, sessions=1):
    """A connection on which nobody has signed in, with sessions."""
    peer = Peer(hub, over)
    peer.send(HEADER + open_() + b"".join(begin(channel) for channel in range(sessions)))
    assert exactly_of(peer, 8) == HEADER
    for _ in range(sessions):
        peer.until(BEGIN)
    return peer


def signed_in(hub, device, over, *, frame_bytes_max=FRAME_BYTES_MAX, idle=None, **how):
    """A connection on which a device is signed in, with one session."""
    peer = Peer(hub, over, **how)
    peer.send(SASL_HEADER)
    assert exactly_of(peer, 8) == SASL_HEADER
    peer.until(MECHANISMS)
    peer.send(sasl_plain(f"{device.id}@sas.{hub.address}", service.device_token(hub, device)))
    assert peer.until(OUTCOME)[-1:] == b"\x00", "the login was refused"
    peer.send(HEADER)
    assert exactly_of(peer, 8) == HEADER
    peer.send(open_(frame_bytes_max, idle=idle) + begin())
    peer.until(OPEN)
    peer.until(BEGIN)
    return peer


def exactly_of(peer, count):
    """The next so many bytes, where no frame stands."""
    while len(peer.held) < count:
        peer.held += peer.below.receive()
    got, peer.held = peer.held[:count], peer.held[count:]
    return got


def telemetry(device):
    return f"/devices/{device.id}/messages/events"


def device_bound(device):
    return f"/devices/{device.id}/messages/devicebound"
