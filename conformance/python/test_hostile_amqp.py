"""Peers that mean no good over AMQP, on its own port and over WebSocket.

What every test demands besides stands in `hostile.Watch`.
"""

import struct
import time

import pytest

import service
from hostile import (
    MIB,
    check_ends_after,
    check_is_held_back,
    fill_queue,
    is_connected,
    wait_until,
    wait_until_quiet,
)
from hostile_amqp import (
    ATTACH,
    BEGIN,
    CLOSE,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    HEADER,
    INIT,
    MECHANISMS,
    OPEN,
    OUTCOME,
    RECEIVER,
    SASL_HEADER,
    SENDER,
    SOURCE,
    TARGET,
    TRANSFER,
    Peer,
    Raw,
    Symbol,
    attach,
    begin,
    compound,
    credit,
    data,
    described,
    device_bound,
    exactly_of,
    frame,
    open_,
    performative,
    put_token,
    sasl_plain,
    signed_in,
    telemetry,
    transfer,
    unknown,
)

AUTHENTICATION_SECONDS = 60
IDLE_SECONDS = 240
LINGER_SECONDS = 5
FRAME_BYTES_MAX = 65536
UNAUTHENTICATED_FRAME_BYTES_MAX = 16 * 1024
MESSAGE_BYTES_MAX = MIB
#: Sessions and links of one connection: before anybody has signed in, and then.
SESSIONS_MAX, LINKS_MAX = (4, 2048), (8, 8192)
#: Beyond those, so many are refused one by one before the connection or session ends.
REFUSALS_MAX = 8
#: What the hub says to a peer that has not signed in in time.
NOT_IN_TIME = b"No valid token was put on this connection in time"

over_any = pytest.mark.parametrize("over", ["amqp", "amqp-ws"])


@pytest.fixture
def hub(hub_of_module, watch):
    """The hub of these tests, which is looked at after each."""
    return hub_of_module


def lists(depth):
    """Lists in each other."""
    sizes = (4 + 9 * inner for inner in reversed(range(depth)))
    value = b"".join(struct.pack(">BII", 0xD0, size, 1 if size > 4 else 0) for size in sizes)
    return Raw(value)


def maps(depth):
    """Maps in each other, each under the key null."""
    value = struct.pack(">BII", 0xD1, 4, 0)
    for _ in range(depth - 1):
        value = struct.pack(">BII", 0xD1, 5 + len(value), 2) + b"\x40" + value
    return Raw(value)


def arrays(depth):
    """Arrays in each other, each told by its constructor."""
    value = struct.pack(">II", 5, 1) + b"\x40"
    for _ in range(depth - 1):
        value = struct.pack(">II", 5 + len(value), 1) + b"\xf0" + value
    return Raw(b"\xf0" + value)


COUNT = 0xFFFFFFF0
BAD_VALUES = {
    "lists-1500-deep": lists(1500),
    "maps-1000-deep": maps(1000),
    "described-10000-deep": Raw(b"\x00" * 10_000),
    "arrays-1000-deep": arrays(1000),
    "list-of-4-billion": Raw(compound(0xD0, [], count=COUNT)),
    "map-of-4-billion": Raw(compound(0xD1, [], count=COUNT)),
    "array-of-4-billion-nulls": Raw(b"\xf0" + struct.pack(">II", 5, COUNT) + b"\x40"),
    "array-of-4-billion-empty-lists": Raw(b"\xf0" + struct.pack(">II", 5, COUNT) + b"\x45"),
    "array-of-4-billion-trues": Raw(b"\xf0" + struct.pack(">II", 5, COUNT) + b"\x41"),
    "array-of-4-billion-bytes": Raw(b"\xf0" + struct.pack(">II", 5, COUNT) + b"\x50"),
    "array-of-no-type": Raw(b"\xf0" + struct.pack(">II", 4, 1)),
    "map-with-odd-count": Raw(compound(0xD1, ["a"])),
    "list-of-4-gb": Raw(compound(0xD0, [], size=0xFFFFFFFF)),
    "list-of-size-0": Raw(b"\xd0\x00\x00\x00\x00\x00\x00\x00\x00"),
    "string-longer-than-frame": Raw(b"\xb1\xff\xff\xff\xffabc"),
    "string-cut-off": Raw(b"\xb1\x00"),
    "string-no-utf-8": Raw(b"\xa1\x02\xff\xfe"),
    "symbol-longer-than-frame": Raw(b"\xb3\x7f\xff\xff\xffabc"),
    "binary-longer-than-frame": Raw(b"\xb0\x00\x01\x00\x00abc"),
    "no-such-type": Raw(b"\x3f"),
    "described-by-nothing": Raw(b"\x00"),
    "boolean-of-2": Raw(b"\x56\x02"),
}


# Before anybody has signed in.


@over_any
@pytest.mark.parametrize(
    "header",
    [b"AMQP\x00\x00\x09\x01", b"AMQP\x02\x01\x00\x00", b"HTTP/1.1", b"\x00" * 8, b"\xff" * 8],
    ids=["amqp-0-9-1", "tls", "http", "zeros", "ones"],
)
def test_a_header_of_another_protocol_is_answered_with_the_right_one(hub, over, header):
    peer = Peer(hub, over)
    peer.send(header)
    got = exactly_of(peer, 8)
    assert got in (HEADER, SASL_HEADER)
    assert peer.to_the_end() == []


@over_any
@pytest.mark.parametrize(
    "bad",
    [
        frame(b"", size=0), frame(b"", size=7), frame(b"", offset=0), frame(b"", offset=1),
        frame(b"", offset=3), frame(b"x" * 100, offset=255), frame(b"", kind=2),
        frame(b"", kind=1), frame(b"", size=0xFFFFFFFF), frame(b"", size=0x80000000),
        frame(b"", size=UNAUTHENTICATED_FRAME_BYTES_MAX + 1), frame(b"", size=FRAME_BYTES_MAX),
    ],
    ids=[
        "size-0", "size-7", "offset-0", "offset-1", "offset-behind-end", "offset-255", "type-2",
        "sasl-again", "4-gb", "2-gb", "16-kb-and-1", "64-kb",
    ],
)
def test_a_bad_frame_closes_the_connection_when_it_is_announced(hub, over, bad):
    peer = unknown(hub, over)
    peer.send(bad)
    peer.check_closed("amqp:connection:framing-error")


@over_any
@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("where", ["open", "attach", "flow"])
def test_a_bad_value_closes_the_connection(hub, over, where, name):
    # Where the properties should have a value of any type.
    value = {Symbol("a"): BAD_VALUES[name]}
    if where == "open":
        peer = Peer(hub, over)
        peer.send(HEADER)
        exactly_of(peer, 8)
        bad = open_(properties=value)
    else:
        peer = unknown(hub, over)
        if where == "attach":
            bad = attach(0, RECEIVER, "$cbs", extra=[None, None, None, value])
        else:
            bad = performative(FLOW, 0, 1, 0, 1, None, None, None, None, False, False, value)
    assert len(bad) <= UNAUTHENTICATED_FRAME_BYTES_MAX
    peer.send(bad)
    peer.check_closed("amqp:decode-error")


@over_any
@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x00", b"\x00\x53", b"\x00\x53\x10", b"\x40", b"\xff" * 100,
        described(0x99), described(BEGIN), described(CLOSE, count=3),
        b"\x00\xa3\x0eamqp:nothing:x" + b"\x45",
    ],
    ids=[
        "nothing", "descriptor-cut-off", "code-cut-off", "no-list", "null", "ones",
        "no-such-performative", "begin-first", "close-with-3-fields-that-are-not-there",
        "no-such-name",
    ],
)
def test_a_bad_first_frame_closes_the_connection(hub, over, body):
    peer = Peer(hub, over)
    peer.send(HEADER)
    exactly_of(peer, 8)
    peer.send(frame(body))
    if not body:
        # An empty frame is a sign of life, which earns no time.
        peer.check_quiet()
        hub.advance(AUTHENTICATION_SECONDS + 1)
        assert NOT_IN_TIME in peer.to_the_end()[-1][1]
        return
    peer.check_closed("amqp:")


def check_ends_after_authentication_time(hub, peer, seconds=AUTHENTICATION_SECONDS):
    """That the time for signing in, of which so much is left, ends the connection with the reason."""
    peer.check_quiet()
    hub.advance(seconds - 2)
    peer.check_quiet()
    hub.advance(3)
    if peer.opened:
        assert NOT_IN_TIME in peer.until(CLOSE)
        # An answer is waited for, but not for long.
        peer.check_quiet()
        hub.advance(LINGER_SECONDS + 1)
    assert peer.to_the_end() == []


@over_any
def test_who_opens_and_never_signs_in_is_told_and_closed(hub, over):
    check_ends_after_authentication_time(hub, unknown(hub, over))


@over_any
def test_signs_of_life_earn_no_time_for_signing_in(hub, over):
    peer = unknown(hub, over)
    for _ in range(50):
        peer.send(frame(b"") + credit_of_session())
        hub.advance(1)
    check_ends_after_authentication_time(hub, peer, AUTHENTICATION_SECONDS - 51)


def credit_of_session():
    return performative(FLOW, 0, 1 << 20, 0, 1 << 20)


@over_any
def test_wrong_tokens_earn_no_time_for_signing_in(hub, over):
    peer = unknown(hub, over)
    peer.send(attach(0, RECEIVER, "$cbs") + attach(1, SENDER, "$cbs"))
    peer.send(credit(0, 1000))
    peer.until(FLOW)
    for number in range(50):
        peer.send(transfer(1, number, put_token("no token", "x", number=number), settled=True))
        hub.advance(1)
    answers = [body for code, body in peer.check_quiet() if code == TRANSFER]
    assert len(answers) == 50
    check_ends_after_authentication_time(hub, peer, AUTHENTICATION_SECONDS - 51)


@over_any
@pytest.mark.parametrize(
    ("first", "accepted"),
    [
        (frame(described(INIT, Symbol("X" * 10_000)), kind=1), False),
        (frame(described(INIT, Symbol("PLAIN")), kind=1), False),
        (frame(described(INIT, Symbol("PLAIN"), b"\0" * 10_000), kind=1), False),
        (frame(described(INIT, Symbol("PLAIN"), b"no zero"), kind=1), False),
        (frame(described(INIT, Symbol("PLAIN"), b"\xff\xfe\0\xff\0\xff"), kind=1), False),
        (sasl_plain("service@sas.root.hub", "x" * 15_000), False),
        (sasl_plain("x" * 15_000, "x"), False),
        (frame(described(INIT, Symbol("EXTERNAL"), b""), kind=1), False),
        (frame(described(MECHANISMS, Symbol("PLAIN")), kind=1), None),
        (frame(described(OUTCOME, 0), kind=1), None),
        (frame(b"", kind=1), None),
        (frame(b"\xff" * 500, kind=1), None),
        (frame(described(OPEN, "x")), None),
        (frame(b"", kind=1, size=UNAUTHENTICATED_FRAME_BYTES_MAX + 1), None),
    ],
    ids=[
        "mechanism-of-10-kb", "plain-without-response", "plain-of-zeros", "plain-without-zero",
        "plain-no-utf-8", "password-of-15-kb", "name-of-15-kb", "external-without-certificate",
        "mechanisms", "outcome", "empty", "ones", "open", "16-kb-and-1",
    ],
)
def test_a_bad_login_ends_the_connection(hub, over, first, accepted):
    peer = Peer(hub, over)
    peer.send(SASL_HEADER)
    exactly_of(peer, 8)
    peer.until(MECHANISMS)
    peer.send(first)
    got = peer.to_the_end()
    outcomes = [body for code, body in got if code == OUTCOME]
    if accepted is None:
        assert outcomes == []
    else:
        assert len(outcomes) == 1 and outcomes[0][-1] == 1


@over_any
def test_a_login_that_never_comes(hub, over):
    peer = Peer(hub, over)
    peer.send(SASL_HEADER)
    exactly_of(peer, 8)
    peer.until(MECHANISMS)
    check_ends_after(hub, peer.below, AUTHENTICATION_SECONDS)


@over_any
def test_what_unknown_peers_attach_costs_little(hub, watch, over):
    # What 500 connections have besides: TLS, a task, sessions. Their frames are of 16 KB at most.
    watch.growth_bytes_max = 500 * 64 * 1024
    peers = []
    for _ in range(500):
        peer = unknown(hub, over)
        for handle in range(LINKS_MAX[0]):
            target = described(TARGET, "x" * 15_000)
            ends = (described(SOURCE, "$cbs"), target)
            peer.send(performative(ATTACH, f"{handle}", handle, RECEIVER, None, None, *ends))
        peers.append(peer)
    wait_until_quiet(hub)


@pytest.mark.parametrize("count", [SESSIONS_MAX[0], SESSIONS_MAX[0] + REFUSALS_MAX])
@over_any
def test_more_sessions_than_unknown_peers_may_have(hub, over, count):
    peer = unknown(hub, over, sessions=SESSIONS_MAX[0])
    for channel in range(SESSIONS_MAX[0], count + 1):
        peer.send(begin(channel))
    if count == SESSIONS_MAX[0]:
        # It is begun and ended again, with the reason.
        assert b"amqp:resource-limit-exceeded" in peer.until(END)
        peer.check_quiet()
    else:
        peer.check_closed("amqp:resource-limit-exceeded")


@pytest.mark.parametrize("count", [LINKS_MAX[0], LINKS_MAX[0] + REFUSALS_MAX])
@over_any
def test_more_links_than_unknown_peers_may_have(hub, over, count):
    peer = unknown(hub, over)
    for handle in range(count + 1):
        peer.send(attach(handle, RECEIVER, "$cbs"))
    ended = DETACH if count == LINKS_MAX[0] else END
    assert b"amqp:resource-limit-exceeded" in peer.until(ended)


# Sessions, channels and handles of devices that are signed in.


@over_any
@pytest.mark.parametrize(
    ("bad", "how"),
    [
        (begin(8192), "amqp:connection:framing-error"),
        (begin(65535), "amqp:connection:framing-error"),
        (begin(0), "amqp:not-allowed"),
        (performative(BEGIN, 77, 0, 1, 1, channel=1), "amqp:not-allowed"),
        (open_(), "amqp:not-allowed"),
        (credit(0, 1, channel=9), "amqp:connection:framing-error"),
        (performative(END, channel=9), "amqp:connection:framing-error"),
        (frame(b"", size=FRAME_BYTES_MAX + 1), "amqp:connection:framing-error"),
        (frame(b"", size=7), "amqp:connection:framing-error"),
        (frame(described(0x20)), "amqp:decode-error"),
        (attach(262_144, RECEIVER, "$cbs"), "amqp:connection:framing-error"),
        (attach(0xFFFFFFFF, RECEIVER, "$cbs"), "amqp:connection:framing-error"),
    ],
    ids=[
        "channel-8192", "channel-65535", "channel-in-use", "answer-to-no-begin", "open-again",
        "flow-without-session", "end-without-session", "64-kb-and-1", "size-7",
        "no-such-performative", "handle-262144", "handle-4-billion",
    ],
)
def test_what_breaks_the_connections_rules_closes_it(hub, hostile, over, bad, how):
    peer = signed_in(hub, hostile, over)
    peer.send(bad)
    peer.check_closed(how)


@over_any
@pytest.mark.parametrize(
    ("bad", "how"),
    [
        (attach(0, RECEIVER, "$cbs") * 2, "amqp:session:handle-in-use"),
        (credit(5, 1), "amqp:session:unattached-handle"),
        (transfer(5, 0, b""), "amqp:session:unattached-handle"),
        (performative(DETACH, 5, True), "amqp:session:unattached-handle"),
        (attach(0, RECEIVER, "$cbs") + transfer(0, 0, b"x"), "amqp:not-allowed"),
    ],
    ids=["handle-twice", "flow", "transfer", "detach", "transfer-the-wrong-way"],
)
def test_what_breaks_a_sessions_rules_ends_it(hub, hostile, over, bad, how):
    peer = signed_in(hub, hostile, over)
    peer.send(bad)
    assert how.encode() in peer.until(END)
    # The connection goes on, with a new session.
    peer.send(performative(END) + begin(7))
    peer.until(BEGIN)


@over_any
def test_more_sessions_than_may_be(hub, hostile, over):
    peer = signed_in(hub, hostile, over)
    for channel in range(1, SESSIONS_MAX[1]):
        peer.send(begin(channel))
    for _ in range(1, SESSIONS_MAX[1]):
        peer.until(BEGIN)
    peer.send(begin(SESSIONS_MAX[1]))
    assert b"amqp:resource-limit-exceeded" in peer.until(END)
    for channel in range(REFUSALS_MAX):
        peer.send(begin(SESSIONS_MAX[1] + 1 + channel))
    peer.check_closed("amqp:resource-limit-exceeded")


@over_any
def test_more_links_than_may_be(hub, hostile, over):
    peer = signed_in(hub, hostile, over)
    for first in range(0, LINKS_MAX[1], 64):
        handles = range(first, first + 64)
        peer.send(b"".join(attach(handle, RECEIVER, "$cbs") for handle in handles))
        for _ in handles:
            peer.until(ATTACH)
    peer.send(attach(LINKS_MAX[1], RECEIVER, "$cbs"))
    assert b"amqp:resource-limit-exceeded" in peer.until(DETACH)


@over_any
def test_sessions_and_links_that_come_and_go_without_end(hub, hostile, over):
    peer = signed_in(hub, hostile, over)
    cycle = (
        begin(1) + attach(0, RECEIVER, "$cbs", channel=1)
        + performative(DETACH, 0, True, channel=1) + performative(END, channel=1)
    )
    for _ in range(100):
        peer.send(cycle * 50)
        for _ in range(50):
            peer.until(END)


@over_any
def test_many_links_with_long_addresses_are_held_up_to_a_bound(hub, watch, hostile, over):
    watch.growth_bytes_max = 64 * MIB
    peer = signed_in(hub, hostile, over, frame_bytes_max=MIB)
    for handle in range(LINKS_MAX[1] - 1):
        ends = (described(SOURCE, "$cbs"), described(TARGET, "x" * 60_000))
        peer.send(performative(ATTACH, f"{handle}", handle, RECEIVER, None, None, *ends))
        if handle % 16 == 0:
            list(peer.frames(0.0005))
    wait_until_quiet(hub)


@over_any
def test_many_links_that_are_refused_are_held_up_to_a_bound(hub, watch, hostile, over):
    # A refusal is kept back for a second; what was asked for need not be.
    watch.growth_bytes_max = 64 * MIB
    peer = signed_in(hub, hostile, over, frame_bytes_max=MIB)
    address = "hub/ConsumerGroups/$Default/Partitions/0"
    for handle in range(4000):
        ends = (described(SOURCE, address), described(TARGET, "x" * 60_000))
        peer.send(performative(ATTACH, f"{handle}", handle, RECEIVER, None, None, *ends))
        if handle % 16 == 0:
            list(peer.frames(0.0005))
    wait_until_quiet(hub)


# Messages.


def sender(hub, device, over, **how):
    """A device with a link for telemetry."""
    peer = signed_in(hub, device, over, **how)
    peer.send(attach(0, SENDER, telemetry(device)))
    peer.until(FLOW)
    return peer


@over_any
def test_half_a_frame_and_then_silence(hub, hostile, over):
    peer = sender(hub, hostile, over)
    whole = transfer(0, 0, data(b"x" * 60_000))
    peer.send(whole[: len(whole) // 2])
    peer.check_quiet()
    hub.advance(IDLE_SECONDS - 2)
    peer.check_quiet()
    hub.advance(3 + LINGER_SECONDS)
    peer.to_the_end()


@over_any
def test_a_frame_of_single_bytes_counts_as_silence(hub, hostile, over):
    peer = sender(hub, hostile, over)
    whole = transfer(0, 0, data(b"x" * 60_000))
    for at in range(8):
        peer.send(whole[at : at + 1])
        peer.check_quiet(0.05)
        hub.advance((IDLE_SECONDS - 10) / 8)
    peer.check_quiet()
    hub.advance(12 + LINGER_SECONDS)
    peer.to_the_end()


@over_any
@pytest.mark.parametrize("payload", [60_000, 1000], ids=["of-60-kb", "of-1-kb"])
def test_a_transfer_without_end_is_cut_off_at_a_mebibyte(hub, hostile, over, payload):
    peer = sender(hub, hostile, over)
    part = transfer(0, 0, b"x" * payload, more=True)
    for _ in range(MESSAGE_BYTES_MAX // payload):
        peer.send(part)
    peer.check_quiet()
    peer.send(part * 2)
    assert b"amqp:link:message-size-exceeded" in peer.until(DETACH)
    # What is still on its way is dropped, and the session goes on.
    peer.send(part * 100 + performative(DETACH, 0, True) + attach(1, RECEIVER, "$cbs"))
    peer.until(ATTACH)


@over_any
def test_empty_transfers_without_end_cost_nothing(hub, hostile, over):
    peer = sender(hub, hostile, over)
    part = transfer(0, 0, b"", more=True)
    for _ in range(200):
        peer.send(part * 1000)
        list(peer.frames(0.001))
    assert {code for code, _ in peer.check_quiet()} <= {FLOW}


@over_any
def test_half_messages_on_many_links_are_held_up_to_a_bound(hub, watch, hostile, over):
    # The setting limits.incomplete_packet_bytes.
    watch.growth_bytes_max = (64 + 32) * MIB
    peer = signed_in(hub, hostile, over)
    part = b"x" * 60_000
    for handle in range(200):
        peer.send(attach(handle, SENDER, telemetry(hostile)))
        # Its credit; from the 72nd on there may be nobody left to give it.
        if peer.until_any(FLOW) is None:
            break
        for _ in range(15):
            peer.send(transfer(handle, handle, part, more=True))
    assert handle >= 64 * MIB // (15 * len(part))
    # 171 MiB in all: it has been told to go.
    peer.to_the_end()


@over_any
def test_messages_without_credit_end_their_link(hub, hostile, over):
    peer = signed_in(hub, hostile, over)
    # At once, so that no credit can have been on its way.
    peer.send(attach(0, SENDER, telemetry(hostile)) + transfer(0, 0, data(b"x")) * 100)
    assert b"amqp:link:transfer-limit-exceeded" in peer.until(DETACH)
    assert not [code for code, _ in peer.check_quiet() if code == DISPOSITION]


@over_any
def test_more_messages_than_the_link_has_credit_for(hub, hostile, over):
    peer = sender(hub, hostile, over)
    peer.send(b"".join(transfer(0, number, data(b"x")) for number in range(3000)))
    assert b"amqp:link:transfer-limit-exceeded" in peer.until(DETACH)
    # What came behind is dropped, and the session goes on.
    peer.send(performative(DETACH, 0, True) + attach(1, SENDER, telemetry(hostile)))
    peer.until(FLOW)


BAD_MESSAGES = {
    "cut-off": b"\x00",
    "no-value": b"\x00\x53\x75",
    "data-of-4-gb": b"\x00\x53\x75\xb0\xff\xff\xff\xff",
    "properties-4000-deep": b"\x00\x53\x74" + lists(4000),
    "4-billion-properties": b"\x00\x53\x74" + compound(0xD1, [], count=COUNT),
    "value-5000-deep": b"\x00\x53\x77" + lists(5000),
    "value-of-arrays-1000-deep": b"\x00\x53\x77" + arrays(1000),
    "value-of-4-billion-nulls": b"\x00\x53\x77\xf0" + struct.pack(">II", 5, COUNT) + b"\x40",
    "sequence-of-4-billion": b"\x00\x53\x76" + compound(0xD0, [], count=COUNT),
    "zeros": b"\x00" * 5000,
    "ones": b"\xff" * 5000,
}


@over_any
@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_bad_message_is_rejected_and_the_link_goes_on(hub, hostile, over, name):
    peer = sender(hub, hostile, over)
    peer.send(transfer(0, 0, BAD_MESSAGES[name]))
    refused = peer.until(DISPOSITION)
    # `rejected`.
    assert b"\x00\x53\x25" in refused
    assert b"amqp:decode-error" in refused or b"amqp:not-implemented" in refused
    peer.send(transfer(0, 1, data(b"good")))
    # `accepted`.
    assert b"\x00\x53\x24" in peer.until(DISPOSITION)


@over_any
def test_a_message_of_thousands_of_sections_is_answered(hub, hostile, over):
    peer = sender(hub, hostile, over)
    peer.send(transfer(0, 0, data(b"") * 6000))
    peer.until(DISPOSITION)


@over_any
def test_a_tag_longer_than_may_be(hub, hostile, over):
    peer = sender(hub, hostile, over)
    peer.send(transfer(0, 0, data(b"x"), tag=b"t" * 60_000))
    peer.check_closed("amqp:")


@over_any
def test_one_delivery_that_begins_before_the_last_has_ended(hub, hostile, over):
    peer = sender(hub, hostile, over)
    peer.send(transfer(0, 0, b"x", more=True) + transfer(0, 1, b"y", more=True))
    assert b"amqp:invalid-field" in peer.until(DETACH)


# Flow.


@over_any
def test_dispositions_of_what_never_was(hub, hostile, over):
    peer = signed_in(hub, hostile, over)
    peer.send(attach(0, RECEIVER, device_bound(hostile)) + credit(0, 0xFFFFFFFF))
    peer.until(ATTACH)
    everything = performative(DISPOSITION, True, 0, 0xFFFFFFFF, True, described(0x24))
    backwards = performative(DISPOSITION, True, 0xFFFFFFFF, 0, True, described(0x24))
    for _ in range(20):
        peer.send((everything + backwards) * 100)
    assert not [code for code, _ in peer.check_quiet() if code in (END, CLOSE)]


@over_any
def test_credit_without_end_brings_no_more_than_there_is(hub, hostile, over):
    peer = signed_in(hub, hostile, over)
    peer.send(attach(0, RECEIVER, device_bound(hostile)))
    peer.until(ATTACH)
    for _ in range(100):
        peer.send(credit(0, 0xFFFFFFFF, window=0xFFFFFFFF) * 100)
    assert not [code for code, _ in peer.check_quiet() if code != FLOW]
    service.send(hub, hostile.id, b"one")
    assert b"one" in peer.until(TRANSFER)


@over_any
def test_a_window_of_nothing_holds_everything_back(hub, hostile, over):
    fill_queue(hub, hostile)
    peer = signed_in(hub, hostile, over)
    closed = performative(FLOW, 0, 0, 0, 0)
    peer.send(closed + attach(0, RECEIVER, device_bound(hostile)))
    peer.until(ATTACH)
    peer.send(credit(0, 1000, window=0))
    assert not [code for code, _ in peer.check_quiet() if code == TRANSFER]


@over_any
@pytest.mark.parametrize("what", ["echoes", "tokens", "questions", "attaches"])
def test_a_peer_that_asks_and_never_reads(hub, hostile, over, what):
    peer = signed_in(hub, hostile, over, receive_buffer=4096)
    request = {"questions": "$management"}.get(what, "$cbs")
    peer.send(attach(0, RECEIVER, request) + attach(1, SENDER, request) + credit(0, 0x7FFFFFFF))
    list(peer.frames(0.3))
    token = service.device_token(hub, hostile)
    asked = {
        "echoes": performative(FLOW, 0, 1, 0, 1, None, None, None, None, False, True) * 1000,
        "tokens": b"".join(
            transfer(1, n, put_token(token, f"{hub.address}/devices/{hostile.id}", number=n))
            for n in range(300)
        ),
        "questions": b"".join(transfer(1, n, data(b"?")) for n in range(1000)),
        "attaches": (attach(9, RECEIVER, "$cbs", name="x" * 10_000) + performative(DETACH, 9, True))
        * 20,
    }[what]
    check_is_held_back(peer, asked)
    wait_until_quiet(hub)
    hub.advance(IDLE_SECONDS + LINGER_SECONDS + 2)
    wait_until_quiet(hub)
    peer.to_the_end()


@over_any
def test_messages_for_a_device_that_never_reads(hub, hostile, over):
    fill_queue(hub, hostile)
    peer = signed_in(hub, hostile, over, receive_buffer=4096)
    peer.send(attach(0, RECEIVER, device_bound(hostile)) + credit(0, 1000))
    wait_until(lambda: is_connected(hub, hostile), "the device has not come")
    wait_until_quiet(hub)
    hub.advance(IDLE_SECONDS - 20)
    assert is_connected(hub, hostile)
    hub.advance(21 + LINGER_SECONDS)
    wait_until(lambda: not is_connected(hub, hostile), "a peer that never reads is kept")
    waiting = hub.admin("GET", f"/api/c2d/devices/{hostile.id}/messages")["messages"]
    assert len(waiting) == 50


@over_any
def test_a_peer_that_wants_a_sign_of_life_each_millisecond(hub, hostile, over):
    peer = signed_in(hub, hostile, over, idle=1)
    started = time.monotonic()
    for _ in range(20):
        hub.advance(1)
    came = sum(1 for _ in peer.signs_of_life(1))
    seconds = time.monotonic() - started
    assert came <= 20 + seconds / 0.4 + 2, came


# The end.


@over_any
def test_an_end_that_is_never_answered(hub, hostile, over):
    peer = sender(hub, hostile, over)
    hub.run("device", "delete", hostile.id)
    assert peer.until_any(DETACH, END, CLOSE)
    # The peer goes on as if nothing were.
    for number in range(10):
        peer.send(transfer(0, number, data(b"x")))
    assert not [code for code, _ in peer.check_quiet_or_closed() if code == DISPOSITION]
    hub.advance(IDLE_SECONDS + LINGER_SECONDS + 1)
    peer.to_the_end()


@over_any
def test_frames_behind_a_close_are_dropped(hub, hostile, over):
    peer = signed_in(hub, hostile, over)
    peer.send(performative(CLOSE) + begin(5) * 10_000)
    assert [code for code, _ in peer.to_the_end()] == [CLOSE]
