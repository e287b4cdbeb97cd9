"""The compatibility matrix: every library over every transport, each feature run against the hub.

Without more, a cross-section runs. FIELDPOST_MATRIX=full runs every cell and writes what came of
each into target/conformance/matrix.jsonl, of which conformance/compatibility.py makes a page. A
cell that is listed in conformance/known-gaps.json must fail.
"""

import concurrent.futures
import contextlib
import json
import os
import queue
import threading
import time
import uuid

import proton
import pytest
from azure.iot.hub import IoTHubRegistryManager

import certificates
from devices import (
    FAULTS,
    RECOVERY_SECONDS_MAX,
    ROWS,
    SHORT_LIFE_SECONDS,
    STATES,
    NotOffered,
    NotSent,
    Refused,
    Who,
    token_of,
)
from hub import ROOT
from reading import Follower, body_of, events_of

FULL = os.environ.get("FIELDPOST_MATRIX") == "full"
OUTCOMES = ROOT / "target/conformance/matrix.jsonl"
KNOWN_GAPS = ROOT / "conformance/known-gaps.json"
WAIT_SECONDS_MAX = 30
#: How long the hub goes on with a connection whose token has ended.
GRACE_SECONDS = 300
#: Less than what any protocol here takes for silence.
STEP_SECONDS = 60
#: How long the hub refuses a device that asked for it: longer than a cell takes by the wall's clock.
STATE_SECONDS = 150


class Cell:
    """What one cell works with: a hub, a device that is registered, and clients that it opens."""

    def __init__(self, hub, row, folder, follower=None, authority=None):
        self.hub, self.row, self.folder = hub, row, folder
        self.follower, self.authority = follower, authority
        self.device_id = f"matrix-{uuid.uuid4().hex[:12]}"
        self.opened = []
        self.key = None

    def register(self, *how):
        self.hub.run("device", "create", self.device_id, *how)

    def register_with_key(self):
        self.key = self.hub.create_device(self.device_id).key

    def open(self, *, module_id=None, short_life=False, **proof):
        who = Who(self.hub.address, self.device_id, module_id, **proof)
        device = self.row.open(self.hub, who, short_life=short_life)
        self.opened.append(device)
        return device

    def open_as_usual(self):
        """A device with what its library is mostly given: a key where it takes one."""
        self.register_with_key()
        if "key" in self.row.lacks:
            return self.open(token=self.token())
        return self.open(key=self.key)

    def token(self, **how):
        return token_of(self.hub.address, self.device_id, self.key, **how)

    def close(self):
        for device in self.opened:
            device.close()

    def check_works(self, device, text):
        """That a message goes each way; for devices that listen."""
        device.send(text.encode(), {})
        self.to_device(text)
        message = device.next()
        assert (message.body, message.message_id) == (text.encode(), text)
        device.complete(message)
        self.wait_until("completed", text)

    def check_refused(self, **proof):
        """That the hub takes no message with these credentials."""
        with pytest.raises(Refused):
            # Over HTTPS nobody is asked before something is sent.
            self.open(**proof).send(b"must not come", {})

    def to_device(self, text, *properties, module_id=None):
        options = [part for each in properties for part in ("--property", each)]
        options += ["--module", module_id] if module_id else []
        self.hub.run("c2d", "send", self.device_id, text, "--message-id", text, *options)

    def fate(self, message_id, module_id=None):
        module = f"&moduleId={module_id}" if module_id else ""
        path = f"/api/c2d/devices/{self.device_id}/trace?messageId={message_id}{module}"
        (found,) = self.hub.admin("GET", path)["messages"]
        return found

    def wait_until(self, outcome, message_id, **whose):
        """What the hub knows of a message as soon as its last delivery had an outcome."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            fate = self.fate(message_id, **whose)
            if fate["attempts"] and fate["attempts"][-1]["outcome"] == outcome:
                return fate
            # Each look takes a while by itself.
            assert time.monotonic() < deadline, fate

    def refusals(self):
        """How often the hub has refused anybody anything so far."""
        counted = ("refused_total", "failures_total")
        lines = self.hub.metrics().splitlines()
        return sorted(line for line in lines if any(name in line for name in counted))

    def stored(self, count):
        return self.follower.of(self.device_id, count)

    def check_stored_as(self, scope, kind):
        """That the hub has stored one event and what it says about the device's credentials."""
        (event,) = self.stored(1)
        method = json.loads(event.system_properties[b"iothub-connection-auth-method"])
        assert (method["scope"], method["type"]) == (scope, kind)
        return event


def send(cell):
    device = cell.open_as_usual()
    device.send(b"\x00 body \xff", {"color": "blue", "odd": "50% a+b&c=d"})
    (event,) = cell.stored(1)
    assert body_of(event) == b"\x00 body \xff"
    assert event.properties == {b"color": b"blue", b"odd": b"50% a+b&c=d"}


def batch(cell):
    bodies = [b"one", b"", b"\x00three\xff"]
    cell.open_as_usual().batch(bodies)
    assert [body_of(event) for event in cell.stored(len(bodies))] == bodies


def receive(cell):
    device = cell.open_as_usual()
    device.listen()
    cell.to_device("hello", "color=blue", "odd=50 per cent")
    message = device.next()
    assert message.body == b"hello"
    assert message.message_id == "hello"
    assert message.properties == {"color": "blue", "odd": "50 per cent"}


def complete(cell):
    device = cell.open_as_usual()
    device.listen()
    cell.to_device("done")
    note = device.complete(device.next())
    cell.wait_until("completed", "done")
    return note


def abandon(cell):
    device = cell.open_as_usual()
    device.listen()
    device.foresee("abandon")
    cell.to_device("twice")
    note = device.abandon(device.next())
    again = device.next()
    assert again.message_id == "twice"
    device.complete(again)
    fate = cell.wait_until("completed", "twice")
    assert [each["outcome"] for each in fate["attempts"]] == ["abandoned", "completed"]
    return note


def reject(cell):
    device = cell.open_as_usual()
    device.listen()
    device.foresee("reject")
    cell.to_device("unwanted")
    note = device.reject(device.next())
    cell.wait_until("rejected", "unwanted")
    return note


def key(cell):
    cell.register_with_key()
    cell.open(key=cell.key).send(b"by key", {})
    cell.check_stored_as("device", "sas")
    cell.check_refused(key="AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")


def token(cell):
    cell.register_with_key()
    cell.open(token=cell.token()).send(b"by token", {})
    cell.check_stored_as("device", "sas")
    cell.key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    cell.check_refused(token=cell.token())


def by_thumbprint(cell):
    mine = certificates.self_signed(cell.folder / "mine", cell.device_id)
    other = certificates.self_signed(cell.folder / "other", cell.device_id)
    cell.register("--auth", "self-signed", "--primary-thumbprint", mine.thumbprint)
    device = cell.open(certificate=mine)
    device.send(b"by thumbprint", {})
    cell.check_stored_as("device", "x509")
    # The link of messages to the device has to know the certificate as well.
    device.listen()
    cell.to_device("hello")
    assert device.next().message_id == "hello"
    cell.check_refused(certificate=other)


def by_authority(cell):
    mine = certificates.signed_by(cell.authority, cell.folder / "mine", cell.device_id)
    stranger = certificates.authority(cell.folder / "stranger", "an authority that is not known")
    other = certificates.signed_by(stranger, cell.folder / "other", cell.device_id)
    cell.register("--auth", "certificate-authority")
    device = cell.open(certificate=mine)
    device.send(b"by authority", {})
    cell.check_stored_as("device", "x509")
    device.listen()
    cell.to_device("hello")
    assert device.next().message_id == "hello"
    cell.check_refused(certificate=other)


def module(cell):
    open_module(cell).send(b"from a module", {})
    event = cell.check_stored_as("module", "sas")
    assert event.system_properties[b"iothub-connection-module-id"] == b"part"


def open_module(cell):
    cell.register_with_key()
    registry = IoTHubRegistryManager.from_connection_string(cell.hub.service_string())
    # A library that knows no modules says so before the hub is asked.
    if "module" in cell.row.lacks:
        cell.open(module_id="part", key=cell.key)
    made = registry.create_module_with_sas(cell.device_id, "part", None, None, None)
    cell.key = made.authentication.symmetric_key.primary_key
    if "key" in cell.row.lacks:
        proof = {"token": cell.token(module_id="part")}
    else:
        proof = {"key": cell.key}
    return cell.open(module_id="part", **proof)


def module_receives(cell):
    device = open_module(cell)
    device.listen()
    cell.to_device("hello", module_id="part")
    if "module receiving" in cell.row.lacks:
        # It has been taken by nobody when what the module sent later has come.
        device.send(b"still there", {})
        cell.stored(1)
        assert cell.fate("hello", module_id="part")["attempts"] == []
        raise NotOffered("the library listens to a module's inputs alone, which are another thing")
    message = device.next()
    assert (message.body, message.message_id) == (b"hello", "hello")
    device.complete(message)
    cell.wait_until("completed", "hello", module_id="part")


def renew(cell):
    """The hub's clock shows that a token was replaced: nothing works long after the first one."""
    cell.register_with_key()
    if "key" not in cell.row.lacks:
        device = cell.open(key=cell.key, short_life=True)
        device.listen()
        device.wait_until_renewed()
        cell.check_works(device, "renewed")
        if device.renews_for_long:
            outlive(cell, device, "by-itself")
        device.close()
        cell.opened.remove(device)
    life = SHORT_LIFE_SECONDS + (cell.hub.now() - time.time_ns() // 1_000_000) // 1000
    device = cell.open(token=cell.token(life=life))
    device.listen()
    cell.check_works(device, "first-token")
    note = device.replace_token(cell.token())
    cell.check_works(device, "second-token")
    outlive(cell, device, "replaced")
    return note


def outlive(cell, device, text):
    """Moves the clock past the end of the first token, with a message at each step."""
    for step in range((SHORT_LIFE_SECONDS + GRACE_SECONDS) // STEP_SECONDS + 2):
        cell.hub.advance(STEP_SECONDS)
        cell.check_works(device, f"{text}-{step}")


def reconnect(cell):
    device = cell.open_as_usual()
    device.listen()
    cell.check_works(device, "before")
    note = None
    for number, end in enumerate((cell.hub.stop, cell.hub.kill)):
        end()
        cell.hub.start()
        note = device.after_restart()
        cell.check_works(device, f"after-{number}")
    events = events_of(cell.hub, cell.device_id, 3)
    # What was on its way may come twice.
    assert {body_of(event) for event in events} >= {b"before", b"after-0", b"after-1"}
    return note


def after(fault):
    """That a device works on after a fault that it asked for itself, as Azure's own suites do."""

    def after_fault(cell):
        if f"after: {fault}" in cell.row.lacks:
            raise NotOffered("the protocol has nothing that the fault would end")
        device = cell.open_as_usual()
        device.listen()
        cell.check_works(device, "before")
        ask_for(cell, device, fault)
        note = device.after_fault(fault)
        if fault.startswith("KillAmqp"):
            # What is sent before the library is back may be lost with what has ended.
            check_receives(cell, device, "back", RECOVERY_SECONDS_MAX)
        for number in range(2):
            cell.check_works(device, f"after-{number}")
        return note

    return after_fault


def during(state):
    """What a library makes of a hub that refuses its device for some time, and that it works on."""

    def during_state(cell):
        device = cell.open_as_usual()
        device.listen()
        cell.check_works(device, "before")
        ask_for(cell, device, state, seconds=STATE_SECONDS)
        if state == "InvokeAuthError":
            device.until_cut_off()
        refused = cell.refusals()
        sending = concurrent.futures.Future()
        threading.Thread(target=outcome_of, args=(device, sending), daemon=True).start()
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while cell.refusals() == refused and not sending.done():
            # Each look takes a while by itself.
            assert time.monotonic() < deadline, "nothing was refused"
        cell.hub.advance(STATE_SECONDS + 1)
        note = sending.result(timeout=RECOVERY_SECONDS_MAX + 5)
        how = device.after_refusal()
        for number in range(2):
            cell.check_works(device, f"after-{number}")
        return f"{note}; {how}" if how else note

    return during_state


def outcome_of(device, sending):
    """Sends a message that the hub refuses, and tells what the application hears of that."""
    try:
        device.send(b"refused at first", {})
    except NotSent as told:
        sending.set_result(f"the application is told: {told}")
    except Refused:
        sending.set_result("the application is told that the device is not authorized")
    except (TimeoutError, queue.Empty):
        sending.set_result("the application is told nothing; what it sends next arrives")
    except BaseException as error:
        sending.set_exception(error)
    else:
        sending.set_result("the library sends again until the hub takes it")


def ask_for(cell, device, fault, *, seconds=None):
    """Has a device ask for a fault, and returns when it happens."""
    asked = {
        "AzIoTHub_FaultOperationType": fault,
        "AzIoTHub_FaultOperationCloseReason": "boom",
        "AzIoTHub_FaultOperationDelayInSecs": "1",
    }
    if seconds:
        asked["AzIoTHub_FaultOperationDurationInSecs"] = str(seconds)
    device.send(b"a fault", asked)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while "a fault happens" not in cell.hub.log():
        # Each look takes a while by itself.
        cell.hub.advance(0)
        assert time.monotonic() < deadline, cell.hub.log()[-2000:]


def check_receives(cell, device, text, seconds):
    """That a message to the device comes within this time, of the wall's clock."""
    cell.to_device(text)
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(queue.Empty, proton.Timeout):
            message = device.next()
            break
        assert time.monotonic() < deadline, "no message comes"
    assert message.message_id == text
    device.complete(message)
    cell.wait_until("completed", text)


#: The columns.
FEATURES = {
    "send": send,
    "batch": batch,
    "receive": receive,
    "complete": complete,
    "abandon": abandon,
    "reject": reject,
    "key": key,
    "token": token,
    "X.509 thumbprint": by_thumbprint,
    "X.509 authority": by_authority,
    "module": module,
    "module receiving": module_receives,
    "renew": renew,
    "reconnect": reconnect,
}
FEATURES |= {f"after: {fault}": after(fault) for fault in FAULTS}
FEATURES |= {f"during: {state}": during(state) for state in STATES}
#: These stop their hub or move its clock.
WITH_OWN_HUB = {"renew", "reconnect"} | {name for name in FEATURES if ": " in name}

#: What runs without more: each row and each column at least once, in half a minute.
CROSS_SECTION = [
    ("python-mqtt", "send"),
    ("python-mqtt", "renew"),
    ("python-mqtt-ws", "X.509 authority"),
    ("node-mqtt", "token"),
    ("node-mqtt", "batch"),
    ("node-mqtt-ws", "receive"),
    ("node-amqp", "reconnect"),
    ("node-amqp-ws", "key"),
    ("node-http", "batch"),
    ("node-http", "reject"),
    ("paho", "X.509 thumbprint"),
    ("paho", "module"),
    ("paho-ws", "abandon"),
    ("proton", "complete"),
    ("proton", "renew"),
    ("python-mqtt", "after: KillTcp"),
    ("node-mqtt", "after: ShutDownMqtt"),
    ("proton", "after: ShutDownAmqp"),
    ("proton", "module receiving"),
    ("proton", "after: KillAmqpConnection"),
    ("proton", "after: KillAmqpSession"),
    ("node-amqp", "after: KillAmqpD2CLink"),
    ("proton", "after: KillAmqpC2DLink"),
    ("node-amqp-ws", "after: KillAmqpC2DLink"),
    ("python-mqtt", "during: InvokeThrottling"),
    ("node-http", "during: InvokeMaxMessageQuota"),
    ("proton", "during: InvokeAuthError"),
]
EVERY_CELL = [(row, feature) for row in ROWS for feature in FEATURES]


def known_gaps():
    listed = json.loads(KNOWN_GAPS.read_text())
    return {(gap["row"], gap["feature"]): gap["reason"] for gap in listed}


def test_the_lists_name_cells_that_there_are():
    for cells in (CROSS_SECTION, known_gaps()):
        assert set(cells) <= set(EVERY_CELL)
    assert {row for row, _ in CROSS_SECTION} == set(ROWS)
    assert {feature for _, feature in CROSS_SECTION} == set(FEATURES)
    assert all(reason.strip() for reason in known_gaps().values())


@pytest.fixture(scope="module")
def follower(hub):
    follower = Follower(hub)
    yield follower
    follower.close()


@pytest.fixture(scope="module")
def authority(hub, tmp_path_factory):
    """An authority that the session's hub trusts."""
    made = certificates.authority(tmp_path_factory.mktemp("authority"), "the matrix's authority")
    hub.run("ca", "add", "matrix", str(made.certificate), "--verified")
    return made


@pytest.fixture(scope="module")
def outcomes():
    """Where outcomes go: a file of this run alone, so that no page shows what an older run did."""
    if not FULL:
        return None
    OUTCOMES.parent.mkdir(parents=True, exist_ok=True)
    OUTCOMES.write_text("")
    return OUTCOMES


@pytest.fixture
def cell(request, tmp_path):
    row, feature = ROWS[request.param[0]], request.param[1]
    if feature in WITH_OWN_HUB:
        cell = Cell(request.getfixturevalue("own_hub"), row, tmp_path)
    else:
        hub, follower, authority = map(request.getfixturevalue, ("hub", "follower", "authority"))
        cell = Cell(hub, row, tmp_path, follower, authority)
    cell.feature = feature
    yield cell
    cell.close()


@pytest.mark.parametrize(
    "cell", EVERY_CELL if FULL else CROSS_SECTION, ids="-".join, indirect=True
)
def test_cell(cell, outcomes):
    row, feature = cell.row, cell.feature
    gap = known_gaps().get((row.name, feature))

    def record(outcome, note):
        if outcomes:
            line = {
                "side": "devices",
                "library": row.library,
                "version": row.version,
                "transport": row.transport,
                "feature": feature,
                "outcome": outcome,
                "note": note,
            }
            with open(outcomes, "a") as file:
                file.write(json.dumps(line) + "\n")

    try:
        note = FEATURES[feature](cell)
    except NotOffered as lack:
        # Whoever lists a lack has seen it, and a lack that nobody listed is a finding.
        assert feature in row.lacks and gap is None
        record("not offered", str(lack))
        return
    except Exception:
        if gap is None:
            record("failed", "")
            raise
        record("gap", gap)
        return
    listed = feature in row.lacks or gap is not None
    record("failed" if listed else "yes", note or "")
    assert gap is None, "this works now: remove it from conformance/known-gaps.json"
    assert feature not in row.lacks, "this is offered now: remove it from devices.py"
