"""Clients that mean no good over HTTPS. What every test demands besides stands in `hostile.Watch`."""

import json
import time

import pytest

import service
from hostile import (
    MIB,
    PORTS,
    Ended,
    Socket,
    by_token,
    check_ends_after,
    check_is_held_back,
    check_open,
    events_path,
    http_request,
    read_until_end,
    statuses,
    upgrade,
    wait_until_quiet,
)

#: For a credential or a WebSocket, from the start of the connection; then for each request's head.
FIRST_HEAD_SECONDS = 15
HEAD_SECONDS = 60
BODY_SECONDS = 30
HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
#: Of telemetry, and of any request: as much is read, so that who sends it sees the answer.
MESSAGE_BYTES_MAX = 256 * 1024
BODY_BYTES_MAX = 4 * MIB
#: What the hub says before it has read a request, by the HTTP library that it stands on.
BARE = (400, 431, 414)


@pytest.fixture
def hub(hub_of_module, watch):
    """The hub of these tests, which is looked at after each."""
    return hub_of_module


def connect(hub, **how):
    return Socket(hub, PORTS["https"], **how)


def post(hub, device, headers=(), body=b""):
    headers = by_token(hub, device) | dict(headers)
    return http_request(hub, "POST", events_path(device), headers, body)


def signed_in(hub, device, **how):
    """A connection on which one message was taken."""
    peer = connect(hub, **how)
    peer.send(post(hub, device, {"Content-Length": 0}))
    assert statuses(check_open(peer)) == [204]
    return peer


def answer_of(peer):
    """The statuses that come, of a hub that then ends the connection."""
    return statuses(read_until_end(peer))


# Heads.


def test_a_head_that_never_comes(hub):
    check_ends_after(hub, connect(hub), FIRST_HEAD_SECONDS)


def test_a_head_that_never_comes_after_a_good_request(hub, hostile):
    check_ends_after(hub, signed_in(hub, hostile), HEAD_SECONDS)


def test_a_head_of_single_bytes_earns_no_time(hub, hostile):
    peer = connect(hub)
    request = post(hub, hostile, {"Content-Length": 0})
    for at in range(FIRST_HEAD_SECONDS - 1):
        peer.send(request[at : at + 1])
        hub.advance(1)
    check_open(peer)
    hub.advance(2)
    assert read_until_end(peer) == b""


def test_header_lines_without_end_earn_no_time_and_no_memory(hub):
    peer = connect(hub)
    peer.send(b"POST / HTTP/1.1\r\n")
    for _ in range(10):
        peer.send(b"a: b\r\n" * 5)
        hub.advance(1)
    check_open(peer)
    peer.send(b"a: b\r\n" * 100_000)
    # Refused as soon as there are too many, long before the time is over.
    assert answer_of(peer)[0] in BARE


def test_requests_that_are_refused_earn_no_time(hub, hostile):
    peer = connect(hub)
    refused = http_request(
        hub, "POST", events_path(hostile), {"Authorization": "no", "Content-Length": 0}
    )
    for _ in range(FIRST_HEAD_SECONDS - 1):
        peer.send(refused)
        assert statuses(check_open(peer, 0.05)) == [401]
        hub.advance(0.8)
    check_open(peer)
    hub.advance(4)
    assert read_until_end(peer) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * (HEADERS_MAX + 1) + b"\r\n",
        b"POST / HTTP/1.1\r\na: " + b"b" * HEAD_BYTES_MAX,
        b"POST / HTTP/1.1\r\n" + b"a" * HEAD_BYTES_MAX,
        b"POST /" + b"a" * HEAD_BYTES_MAX,
        b"P" * HEAD_BYTES_MAX,
        b"\r\n" * HEAD_BYTES_MAX + b"x",
        b"POST / HTTP/1.1\r\n folded: x\r\n\r\n",
        b"POST / HTTP/1.1\r\na\0: b\r\n\r\n",
        b"POST / HTTP/1.1\r\na: b\0\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"POST /\x80\xff HTTP/1.1\r\n\x00\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
        b"\x00" * 1024,
    ],
    ids=[
        "101-headers", "value-of-32-kb", "name-of-32-kb", "path-of-32-kb", "method-of-32-kb",
        "empty-lines", "folded-first", "nul-in-name", "nul-in-value", "version", "not-ascii",
        "http-2", "tls-in-tls", "zeros",
    ],
)
def test_a_bad_head_is_refused_and_ends_the_connection(hub, head):
    peer = connect(hub)
    peer.send(head)
    got = answer_of(peer)
    assert len(got) <= 1 and set(got) <= set(BARE), got


# Bodies.


@pytest.mark.parametrize(
    "headers",
    [
        {"Transfer-Encoding": "chunked", "Content-Length": "5"},
        {"Content-Length": "-1"},
        {"Content-Length": "18446744073709551616"},
        {"Content-Length": "5, 6"},
        {"Content-Length": "0x5"},
        {"Transfer-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked, identity"},
    ],
    ids=["both", "negative", "two-to-the-64", "two-lengths", "hexadecimal", "gzip", "not-last"],
)
def test_a_body_of_unclear_length_is_never_a_second_request(hub, hostile, headers):
    peer = connect(hub)
    # What one side takes for a body may be a request for the other.
    smuggled = post(hub, hostile, {"Content-Length": 0})
    peer.send(post(hub, hostile, headers, b"0\r\n\r\n" + smuggled))
    # Of both, the library takes the chunks, and ends the connection (RFC 9112, section 6.1).
    (status,) = answer_of(peer)
    assert 400 <= status < 500 or (status == 204 and len(headers) == 2), status


def test_a_body_that_never_comes(hub, hostile):
    peer = connect(hub)
    peer.send(post(hub, hostile, {"Content-Length": 1000}, b"x"))
    check_open(peer)
    hub.advance(BODY_SECONDS - 1)
    assert check_open(peer) == b""
    hub.advance(2)
    got = read_until_end(peer)
    assert statuses(got) == [400] and b"RequestTimedOut" in got


def test_a_body_of_single_bytes_earns_no_time(hub, hostile):
    peer = connect(hub)
    peer.send(post(hub, hostile, {"Transfer-Encoding": "chunked"}))
    check_open(peer)
    for _ in range(BODY_SECONDS - 1):
        peer.send(b"1\r\nx\r\n")
        hub.advance(1)
    check_open(peer)
    hub.advance(2)
    assert answer_of(peer) == [400]


def test_a_body_without_a_credential_is_not_read(hub, hostile):
    for number in range(20):
        peer = connect(hub)
        headers = {"Content-Length": BODY_BYTES_MAX}
        peer.send(http_request(hub, "POST", events_path(hostile), headers, b"x" * 100_000))
        assert answer_of(peer) == [401], number


@pytest.mark.parametrize("chunk", [1, 100, 65536])
def test_chunks_without_end_are_refused_at_4_mib(hub, hostile, chunk):
    peer = connect(hub)
    peer.send(post(hub, hostile, {"Transfer-Encoding": "chunked"}))
    part = b"%x\r\n%s\r\n" % (chunk, b"x" * chunk)
    parts = part * (MIB // 4 // chunk + 1)
    # Behind the message's limit of 256 KB it reads on and keeps nothing.
    got = b""
    with pytest.raises(Ended):
        for _ in range(64):
            peer.send_unread(parts)
            got += peer.receive(0.001)
    got += read_until_end(peer)
    # What it sent behind the end may have cost it the answer.
    assert statuses(got) in ([413], [])


@pytest.mark.parametrize(
    "chunks",
    [
        b"ffffffffffffffff\r\n",
        b"10000000000000000\r\n",
        b"-1\r\nx\r\n",
        b"x\r\n",
        b"1;" + b"a" * 100_000,
        b"1;a=" + b"b" * 20_000 + b"\r\nx\r\n" + b"1;a=b\r\nx\r\n" * 20_000,
        b"1\nx\n0\n\n",
        b"0\r\n" + b"a: b\r\n" * 20_000,
        b"0\r\na: " + b"b" * 100_000,
    ],
    ids=[
        "size-2-64-less-1", "size-2-64", "negative", "no-number", "extension-of-100-kb",
        "extensions", "without-cr", "trailers", "trailer-of-100-kb",
    ],
)
def test_bad_chunks_are_refused_and_end_the_connection(hub, hostile, chunks):
    peer = connect(hub)
    peer.send(post(hub, hostile, {"Transfer-Encoding": "chunked"}, chunks))
    got = b""
    try:
        got = check_open(peer)
    except AssertionError:
        # Ended, which is good as well.
        return
    if not got:
        # A size that may still come: the time for bodies ends it.
        hub.advance(BODY_SECONDS + 1)
        got = read_until_end(peer)
    assert all(400 <= status < 500 for status in statuses(got)), got


def test_bodies_of_many_connections_are_held_up_to_a_bound(hub, watch, hostile):
    # The setting limits.incomplete_packet_bytes, and what TLS has for each.
    watch.growth_bytes_max = (64 + 48) * MIB
    half = b"x" * (BODY_BYTES_MAX - 1000)
    owner = service.service_token(hub, policy="iothubowner")
    headers = {"Authorization": owner, "Content-Length": BODY_BYTES_MAX}
    peers = []
    for _ in range(40):
        peer = connect(hub)
        peer.send(http_request(hub, "POST", "/devices", headers, half))
        peers.append(peer)
    check_open(peers[-1])
    # The first had to make room, and heard why or saw the end.
    assert set(answer_of(peers[0])) <= {400, 503}
    hub.advance(BODY_SECONDS + 1)
    assert answer_of(peers[-1]) == [400]


def test_deep_json_is_refused(hub):
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * MIB * 2):
        answer = service.https(hub, "POST", "/devices", data=body)
        assert answer.status_code == 400
    deep = b'{"deviceId":"d","x":' + b"[" * 5000 + b"]" * 5000 + b"}"
    answer = service.https(hub, "PUT", "/devices/d", data=deep)
    assert answer.status_code == 400, answer.text


def test_strings_and_numbers_without_end_in_json(hub):
    long = json.dumps({"deviceId": "x" * MIB})
    assert service.https(hub, "PUT", "/devices/x", data=long).status_code == 400
    number = '{"deviceId":"x","c2dMessages":' + "9" * MIB + "}"
    assert service.https(hub, "PUT", "/devices/x", data=number).status_code in (200, 400)


# Many requests on one connection.


def test_pipelined_requests_are_answered_in_order(hub, hostile):
    peer = connect(hub)
    good = post(hub, hostile, {"Content-Length": 0})
    missing = http_request(hub, "GET", "/nowhere", by_token(hub, hostile))
    peer.send((good + missing) * 250)
    got = []
    deadline = time.monotonic() + 20
    while len(got) < 500 and time.monotonic() < deadline:
        got += statuses(check_open(peer, 0.2))
    assert got == [204, 404] * 250


def test_pipelined_requests_whose_answers_are_never_read(hub, hostile):
    peer = signed_in(hub, hostile, receive_buffer=4096)
    asked = http_request(hub, "GET", "/nowhere", by_token(hub, hostile)) * 1000
    check_is_held_back(peer, asked)
    wait_until_quiet(hub)
    hub.advance(HEAD_SECONDS + 1)
    read_until_end(peer)


def test_a_large_answer_that_is_never_read(hub, watch, fleet):
    fleet(1000)
    asked = http_request(
        hub, "GET", "/devices?api-version=2021-04-12&top=1000",
        {"Authorization": service.service_token(hub, policy="iothubowner")},
    )
    # One answer of about half a megabyte waits on each connection.
    watch.growth_bytes_max = 96 * MIB
    peers = [connect(hub, receive_buffer=4096) for _ in range(50)]
    for peer in peers:
        peer.send(asked * 10)
    wait_until_quiet(hub)
    hub.advance(HEAD_SECONDS - 10)
    check_open_without_reading(peers[0])
    hub.advance(11)
    for peer in peers:
        read_until_end(peer)


def check_open_without_reading(peer):
    """That the hub has not ended the connection, while what it wrote stays where it is."""
    # Further requests find room or do not; a connection that has ended says so at the second.
    peer.send_unread(b"x")
    peer.send_unread(b"x")


# Asking for a WebSocket.


@pytest.mark.parametrize(
    ("path", "subprotocol", "headers", "status"),
    [
        ("/$iothub/websocket", "x" * 20_000, {}, 400),
        ("/$iothub/websocket", ", ".join(["x"] * 5000), {}, 400),
        ("/$iothub/websocket", "mqtt", {"Sec-WebSocket-Key": ""}, 400),
        ("/$iothub/websocket", "mqtt", {"Sec-WebSocket-Key": "x" * 20_000}, 400),
        ("/$iothub/websocket", "mqtt", {"Sec-WebSocket-Version": "99"}, 400),
        ("/nowhere", "mqtt", {}, 404),
    ],
    ids=["long-name", "many-names", "no-key", "long-key", "version", "path"],
)
def test_a_bad_request_for_a_websocket(hub, path, subprotocol, headers, status):
    peer = connect(hub)
    peer.send(upgrade(hub, subprotocol, path, **headers))
    assert statuses(check_open(peer)) == [status]
    # And it earned no time.
    hub.advance(FIRST_HEAD_SECONDS + 1)
    read_until_end(peer)


def test_packets_behind_a_request_for_a_websocket_are_bounded(hub):
    peer = connect(hub)
    peer.send(upgrade(hub, "mqtt") + b"\x82\xff" + b"\x00" * 100_000)
    got = read_until_end(peer)
    assert statuses(got) == [101]
