"""Every kind of credential at every operation of every endpoint, and the answer that each must get.

The tables below are the rules, written down by hand. All that must be let in is tried first. Then
devices get something to lose, all that must be refused is tried, and nothing may have changed.
"""

import base64
import hashlib
import http.client
import json
import os
import time
import uuid
from dataclasses import dataclass

import proton
import pytest

import service
from credentials import Certificates, Credential, Mqtt, Visit, Visits, plain_code, tls_context
from reading import body_of, consumer, positions, read_until

#: The devices that operations are tried at.
DEVICES = {
    "a": "cell-1",
    # Its id begins with that of a.
    "b": "cell-10",
    # Its id is that of a in another letter case.
    "c": "CELL-1",
    # Disabled.
    "d": "cell-disabled",
    # Deleted.
    "e": "cell-deleted",
    # Known by the thumbprint of a certificate; it had keys before.
    "f": "cell-thumbprint",
    # Known by certificates of an authority; it had keys before.
    "g": "cell-authority",
}

#: For each credential where it is let in: letters are devices, as above.
#:
#: read, write     a device in the registry
#: list, stats     the list of devices, and the counts
#: make            new devices, one and many
#: purge           a device's queue
#: service         feedback, and sending to devices
#: events          the Event Hubs endpoint
#: self            HTTPS and MQTT as the device
#: links           AMQP as the device, by a token put to $cbs or by the certificate alone
#: cbs             whether $cbs takes the token
#: plain           SASL PLAIN as a policy
#: login           SASL PLAIN as the device
#:
#: The rights (Azure IoT Hub, "control access with shared access signatures"): RegistryRead reads
#: the registry, RegistryReadWrite reads and writes it, ServiceConnect is for what services do,
#: DeviceConnect speaks for devices. A token opens what lies at or below its resource, by whole
#: segments.
TABLE = """
                         read write list stats make purge service events self links cbs plain login

# Policies, for the whole hub.
iothubowner              all  all   yes  yes   yes  all   yes     yes    all  all   yes yes   all
service                  -    -     -    -     -    all   yes     yes    -    -     yes yes   -
device                   -    -     -    -     -    -     -       -      all  all   yes yes   all
registryRead             all  -     yes  yes   -    -     -       -      -    -     yes yes   -
registryReadWrite        all  all   yes  yes   yes  -     -       -      -    -     yes yes   -

# Policies, for one device.
iothubowner-for-a        a    a     -    -     -    a     -       -      a    a     yes yes   a
service-for-a            -    -     -    -     -    a     -       -      -    -     yes yes   -
device-for-a             -    -     -    -     -    -     -       -      a    a     yes yes   a
registryRead-for-a       a    -     -    -     -    -     -       -      -    -     yes yes   -
registryReadWrite-for-a  a    a     -    -     -    -     -       -      -    -     yes yes   -
iothubowner-for-b        b    b     -    -     -    b     -       -      b    b     yes yes   b
service-for-b            -    -     -    -     -    b     -       -      -    -     yes yes   -
device-for-b             -    -     -    -     -    -     -       -      b    b     yes yes   b
registryRead-for-b       b    -     -    -     -    -     -       -      -    -     yes yes   -
registryReadWrite-for-b  b    b     -    -     -    -     -       -      -    -     yes yes   -
iothubowner-for-c        c    c     -    -     -    c     -       -      c    c     yes yes   c
device-for-d             -    -     -    -     -    -     -       -      -    -     yes yes   -

# Some tools make tokens for what a device sends to: they speak for that device.
device-for-a-events      -    -     -    -     -    -     -       -      a    a     yes yes   a

# Other parts of the hub, and texts that only begin like one.
iothubowner-for-devices  all  all   yes  -     yes  all   -       -      all  all   yes yes   all
iothubowner-for-messages -    -     -    -     -    -     yes     -      -    -     yes yes   -
iothubowner-for-hub      -    -     -    -     -    -     -       yes    -    -     yes yes   -
iothubowner-for-stats    -    -     -    yes   -    -     -       -      -    -     yes yes   -
iothubowner-for-dev      -    -     -    -     -    -     -       -      -    -     yes yes   -
iothubowner-for-cell-    -    -     -    -     -    -     -       -      -    -     yes yes   -

# Host names and fixed words compare without case; other hosts are other hubs.
host-in-capitals         all  all   yes  yes   yes  all   yes     yes    all  all   yes yes   all
words-in-capitals        a    a     -    -     -    a     -       -      a    a     yes yes   a
host-another             -    -     -    -     -    -     -       -      -    -     -   -     -
host-longer              -    -     -    -     -    -     -       -      -    -     -   -     -
host-shorter             -    -     -    -     -    -     -       -      -    -     -   -     -

# Clocks may differ by five minutes.
ended-4-minutes-ago      all  all   yes  yes   yes  all   yes     yes    all  all   yes yes   all
ended-6-minutes-ago      -    -     -    -     -    -     -       -      -    -     -   -     -

# Tokens of policies that were changed, or are none.
policy-signature-changed -    -     -    -     -    -     -       -      -    -     -   -     -
policy-expiry-changed    -    -     -    -     -    -     -       -      -    -     -   -     -
policy-resource-widened  -    -     -    -     -    -     -       -      -    -     -   -     -
policy-renamed           -    -     -    -     -    -     -       -      -    -     -   -     -
policy-unknown           -    -     -    -     -    -     -       -      -    -     -   -     -
policy-signed-by-nothing -    -     -    -     -    -     -       -      -    -     -   -     -
# A login names the policy as well: a token need not, and must not name another.
policy-not-named         -    -     -    -     -    -     -       -      -    -     -   yes   -
policy-of-another-login  -    -     -    -     -    all   yes     yes    -    -     yes -     -
# Event Hubs clients sign with the text of the key.
policy-signed-by-text    all  all   yes  yes   yes  all   yes     yes    all  all   yes yes   all

# Devices' own keys.
a-primary                -    -     -    -     -    -     -       -      a    a     yes -     a
a-secondary              -    -     -    -     -    -     -       -      a    a     yes -     a
b-primary                -    -     -    -     -    -     -       -      b    b     yes -     b
c-primary                -    -     -    -     -    -     -       -      c    c     yes -     c
a-words-in-capitals      -    -     -    -     -    -     -       -      a    a     yes -     a
a-for-events             -    -     -    -     -    -     -       -      a    a     yes -     a
# The HTTP transport of the C SDK writes an empty name of a policy.
a-policy-empty           -    -     -    -     -    -     -       -      a    a     yes -     a
a-ended-4-minutes-ago    -    -     -    -     -    -     -       -      a    a     yes -     a
a-ended-6-minutes-ago    -    -     -    -     -    -     -       -      -    -     -   -     -
a-signature-changed      -    -     -    -     -    -     -       -      -    -     -   -     -
a-expiry-changed         -    -     -    -     -    -     -       -      -    -     -   -     -
a-resource-changed       -    -     -    -     -    -     -       -      -    -     -   -     -
a-host-another           -    -     -    -     -    -     -       -      -    -     -   -     -
a-naming-policy          -    -     -    -     -    -     -       -      -    -     -   -     -
a-signed-by-text         -    -     -    -     -    -     -       -      -    -     -   -     -
a-signed-by-nothing      -    -     -    -     -    -     -       -      -    -     -   -     -
a-replaced-key           -    -     -    -     -    -     -       -      -    -     -   -     -
a-for-everything         -    -     -    -     -    -     -       -      -    -     -   -     -
a-for-devices            -    -     -    -     -    -     -       -      -    -     -   -     -
a-for-cell-              -    -     -    -     -    -     -       -      -    -     -   -     -
a-for-b                  -    -     -    -     -    -     -       -      -    -     -   -     -
a-for-c                  -    -     -    -     -    -     -       -      -    -     -   -     -
b-for-a                  -    -     -    -     -    -     -       -      -    -     -   -     -
c-for-a                  -    -     -    -     -    -     -       -      -    -     -   -     -
a-for-module             -    -     -    -     -    -     -       -      -    -     -   -     -
d-primary                -    -     -    -     -    -     -       -      -    -     -   -     -
e-primary                -    -     -    -     -    -     -       -      -    -     -   -     -
f-former-key             -    -     -    -     -    -     -       -      -    -     -   -     -
f-signed-by-nothing      -    -     -    -     -    -     -       -      -    -     -   -     -
g-former-key             -    -     -    -     -    -     -       -      -    -     -   -     -

# Certificates.
f-certificate            -    -     -    -     -    -     -       -      f    f     -   -     -
f-certificate-ended      -    -     -    -     -    -     -       -      -    -     -   -     -
f-certificate-another    -    -     -    -     -    -     -       -      -    -     -   -     -
f-certificate-authority  -    -     -    -     -    -     -       -      -    -     -   -     -
g-certificate            -    -     -    -     -    -     -       -      g    g     -   -     -
g-certificate-ended      -    -     -    -     -    -     -       -      -    -     -   -     -
g-certificate-stranger   -    -     -    -     -    -     -       -      -    -     -   -     -
g-certificate-unverified -    -     -    -     -    -     -       -      -    -     -   -     -
g-certificate-by-itself  -    -     -    -     -    -     -       -      -    -     -   -     -
g-certificate-shorter    -    -     -    -     -    -     -       -      -    -     -   -     -
g-certificate-capitals   -    -     -    -     -    -     -       -      -    -     -   -     -
a-certificate-authority  -    -     -    -     -    -     -       -      -    -     -   -     -
d-certificate-authority  -    -     -    -     -    -     -       -      -    -     -   -     -
# A token counts and the certificate does not; over AMQP each link is opened by what is good for it.
f-certificate+a          -    -     -    -     -    -     -       -      a    af    yes -     a
f-certificate+ended      -    -     -    -     -    -     -       -      -    f     -   -     -
f-certificate+service    -    -     -    -     -    all   yes     yes    -    f     yes yes   -

# Nothing.
nothing                  -    -     -    -     -    -     -       -      -    -     -   -     -
no-token                 -    -     -    -     -    -     -       -      -    -     -   -     -
bearer                   -    -     -    -     -    -     -       -      -    -     -   -     -
key-itself               -    -     -    -     -    -     -       -      -    -     -   -     -
"""

REFUSED = "401 IotHubUnauthorizedAccess"
NOT_FOUND = "404 DeviceNotFound"
LOCK_LOST = "412 DeviceMessageLockLost"
CHANGED = "412 PreconditionFailed"


@dataclass(frozen=True)
class Operation:
    """A request over HTTPS, its column in the table, and the answer to who is let in."""

    method: str
    path: str
    column: str
    answer: str
    #: At the device that was deleted, for who may know that. None for what is at no device.
    of_deleted: str | None = None


#: What devices do is refused at the disabled one, whoever asks.
HTTPS = {
    "read": Operation("GET", "/devices/{device}", "read", "200", NOT_FOUND),
    "modules": Operation("GET", "/devices/{device}/modules", "read", "200", NOT_FOUND),
    "write": Operation("PUT", "/devices/{device}", "write", CHANGED, NOT_FOUND),
    "delete": Operation("DELETE", "/devices/{device}", "write", CHANGED, NOT_FOUND),
    "list": Operation("GET", "/devices", "list", "200"),
    "count": Operation("GET", "/statistics/devices", "stats", "200"),
    "connected": Operation("GET", "/statistics/service", "stats", "200"),
    "create": Operation("PUT", "/devices/{new}", "make", "200"),
    "bulk": Operation("POST", "/devices", "make", "200"),
    "purge": Operation("DELETE", "/devices/{device}/commands", "purge", "200", NOT_FOUND),
    "feedback": Operation("GET", service.FEEDBACK, "service", "204"),
    "feedback-complete": Operation(
        "DELETE", service.FEEDBACK + "/{feedback}", "service", LOCK_LOST
    ),
    "feedback-abandon": Operation(
        "POST", service.FEEDBACK + "/{feedback}/abandon", "service", LOCK_LOST
    ),
    "send": Operation("POST", "/devices/{device}/messages/events", "self", "204", NOT_FOUND),
    "receive": Operation(
        "GET", "/devices/{device}/messages/devicebound", "self", "204", NOT_FOUND
    ),
    "complete": Operation(
        "DELETE", "/devices/{device}/messages/devicebound/{lock}", "self", LOCK_LOST, NOT_FOUND
    ),
    "abandon": Operation(
        "POST", "/devices/{device}/messages/devicebound/{lock}/abandon", "self", LOCK_LOST,
        NOT_FOUND,
    ),
}

#: Links over AMQP: role, address, column, and the answer to who is let in.
LINKS = {
    "telemetry": ("sender", "/devices/{device}/messages/events", "links", "open"),
    "device-bound": ("receiver", "/devices/{device}/messages/deviceBound", "links", "open"),
    "commands": ("sender", "/messages/devicebound", "service", "open"),
    "feedback": ("receiver", "/messages/serviceBound/feedback", "service", "open"),
    "files": (
        "receiver", "/messages/serviceBound/filenotifications", "service", "amqp:not-implemented"
    ),
    # Sent on to the Event Hubs endpoint.
    "events": ("receiver", "/messages/events", "service", "amqp:link:redirect"),
    "partition": ("receiver", "hub/ConsumerGroups/$Default/Partitions/0", "events", "open"),
}
LINK_REFUSED = "amqp:unauthorized-access"


def rows():
    """The table: for each credential, column and what is in it."""
    head, *lines = [
        line.split() for line in TABLE.splitlines() if line and not line.startswith("#")
    ]
    table = {name: dict(zip(head, marks, strict=True)) for name, *marks in lines}
    assert len(table) == len(lines), "a credential stands in the table twice"
    assert all(
        mark in ("all", "yes", "-") or set(mark) <= set(DEVICES)
        for marks in table.values()
        for mark in marks.values()
    )
    return table


ROWS = rows()


def lets_in(mark, device=None):
    """Whether a mark of the table lets in, at a device where it is about devices."""
    if device is None:
        assert mark in ("yes", "-"), mark
        return mark == "yes"
    assert mark != "yes"
    return mark == "all" or device in mark


def over_https():
    """The cells of HTTPS: (credential, "HTTPS", operation, device) and the answer."""
    for name, marks in ROWS.items():
        for what, operation in HTTPS.items():
            mark = marks[operation.column]
            if operation.of_deleted is None:
                answer = operation.answer if lets_in(mark) else REFUSED
                yield (name, "HTTPS", what, None), answer
                continue
            for device in DEVICES:
                answer = operation.of_deleted if device == "e" else operation.answer
                if not lets_in(mark, device) or (operation.column == "self" and device == "d"):
                    answer = REFUSED
                yield (name, "HTTPS", what, device), answer


def is_connected(mark, device):
    """Whether a mark lets a device connect: not the disabled one, nor the deleted one."""
    return lets_in(mark, device) and device not in "de"


def over_mqtt():
    """CONNACK for each device; and for each that connects, publishes for itself and all others."""
    for name, marks in ROWS.items():
        for device in DEVICES:
            connected = is_connected(marks["self"], device)
            yield (name, "MQTT", "connect", device), 0 if connected else 5
            if connected:
                for other in DEVICES:
                    yield (name, "MQTT", f"publish-as-{device}", other), device == other


def ways(name):
    """How a credential signs in over AMQP, and the columns that say what is open then."""
    marks = ROWS[name]
    yield "CBS", marks
    # Whoever may do both must find the same behind both.
    if lets_in(marks["plain"]) and lets_in(marks["cbs"]):
        yield "PLAIN", marks
    for device in DEVICES:
        if is_connected(marks["login"], device):
            # Who has logged in as a device is that device, whatever the token would open besides.
            yield f"PLAIN-as-{device}", {"links": device, "service": "-", "events": "-"}


def over_amqp():
    """The outcomes of signing in, and what is open then."""
    for name, marks in ROWS.items():
        yield (name, "CBS", "put-token", None), 200 if lets_in(marks["cbs"]) else 401
        yield (name, "PLAIN", "login", None), 0 if lets_in(marks["plain"]) else 1
        for device in DEVICES:
            outcome = 0 if is_connected(marks["login"], device) else 1
            yield (name, "PLAIN", "login-as", device), outcome
        allowed = lets_in(marks["events"])
        yield (name, "ANONYMOUS", "question-with-token", None), 200 if allowed else 401
        for way, opened in ways(name):
            for what, (_, address, column, answer) in LINKS.items():
                if "{device}" not in address:
                    answer = answer if lets_in(opened[column]) else LINK_REFUSED
                    yield (name, way, what, None), answer
                    continue
                for device in DEVICES:
                    connected = is_connected(opened[column], device)
                    yield (name, way, what, device), answer if connected else LINK_REFUSED
            allowed = lets_in(opened["events"])
            yield (name, way, "question", None), 200 if allowed else 401


#: Of 8, less those to $cbs and to $management.
STRANGERS_LINKS_MAX = 4

EXPECTED = {cell: answer for part in (over_https, over_mqtt, over_amqp) for cell, answer in part()}


def new_key():
    return base64.b64encode(os.urandom(32)).decode()


class World:
    """A hub with devices in every state, and all the credentials."""

    def __init__(self, hub, folder):
        self.hub, self.host = hub, hub.address
        self.certificates = Certificates(folder)
        self.keys = {device: new_key() for device in DEVICES}
        self.secondary_keys = {device: new_key() for device in DEVICES}
        self.replaced_key = new_key()
        self._make_certificates()
        self._register()
        self.credentials = self._make_credentials()
        assert self.credentials.keys() == ROWS.keys()
        self.contexts = {
            name: tls_context(hub, credential) for name, credential in self.credentials.items()
        }

    def _make_certificates(self):
        make = self.certificates
        f, g = DEVICES["f"], DEVICES["g"]
        known, stranger, unverified = (
            make.self_signed(f"{name} authority") for name in ("known", "strange", "unverified")
        )
        self.hub.run("ca", "add", "known", known[0], "--verified")
        self.hub.run("ca", "add", "unverified", unverified[0])
        self.proofs = {
            "f-certificate": make.self_signed(f),
            "f-certificate-ended": make.signed(stranger, f, ended=True),
            "f-certificate-another": make.self_signed(f),
            "f-certificate-authority": make.signed(known, f),
            "g-certificate": make.signed(known, g),
            "g-certificate-ended": make.signed(known, g, ended=True),
            "g-certificate-stranger": make.signed(stranger, g),
            "g-certificate-unverified": make.signed(unverified, g),
            "g-certificate-by-itself": make.self_signed(g),
            "g-certificate-shorter": make.signed(known, g[:-1]),
            "g-certificate-capitals": make.signed(known, g.upper()),
            "a-certificate-authority": make.signed(known, DEVICES["a"]),
            "d-certificate-authority": make.signed(known, DEVICES["d"]),
        }

    def _register(self):
        def put(device, authentication, condition=None, status="enabled"):
            document = {
                "deviceId": DEVICES[device], "status": status, "authentication": authentication
            }
            headers = {"If-Match": condition} if condition else {}
            answer = service.https(
                self.hub, "PUT", f"/devices/{DEVICES[device]}", json=document, headers=headers
            )
            assert answer.status_code == 200, answer.text

        def with_keys(primary, secondary):
            keys = {"primaryKey": primary, "secondaryKey": secondary}
            return {"type": "sas", "symmetricKey": keys}

        for device in DEVICES:
            put(device, with_keys(self.keys[device], self.secondary_keys[device]))
        put("a", with_keys(self.replaced_key, new_key()), "*")
        put("a", with_keys(self.keys["a"], self.secondary_keys["a"]), "*")
        put("d", with_keys(self.keys["d"], self.secondary_keys["d"]), "*", "disabled")
        thumbprints = {
            f"{which}Thumbprint": hashlib.sha256(Certificates.der(self.proofs[proof])).hexdigest()
            for which, proof in (("primary", "f-certificate"), ("secondary", "f-certificate-ended"))
        }
        put("f", {"type": "selfSigned", "x509Thumbprint": thumbprints}, "*")
        put("g", {"type": "certificateAuthority"}, "*")
        answer = service.https(self.hub, "DELETE", f"/devices/{DEVICES['e']}")
        assert answer.status_code == 204, answer.text

    def policy_token(self, policy, below="", *, host=None, name=..., **options):
        """The token of a policy for something below the hub, or for another host."""
        string = dict(part.split("=", 1) for part in self.hub.service_string(policy).split(";"))
        named = policy if name is ... else name
        resource = (host or self.host) + below
        return service.token(resource, string["SharedAccessKey"], policy=named, **options)

    def token(self, signer, below=None, *, key=None, host=None, **options):
        """A token signed by a device's key, for itself or for something else."""
        below = f"/devices/{DEVICES[signer]}" if below is None else below
        key = self.keys[signer] if key is None else key
        return service.token((host or self.host) + below, key, **options)

    def _make_credentials(self):
        a, b, c, d = (f"/devices/{DEVICES[device]}" for device in "abcd")
        policy, own = self.policy_token, self.token
        four, six = {"life": -4 * 60}, {"life": -6 * 60}
        policies = ("iothubowner", "service", "device", "registryRead", "registryReadWrite")
        tokens = {
            **{name: policy(name) for name in policies},
            **{f"{name}-for-a": policy(name, a) for name in policies},
            **{f"{name}-for-b": policy(name, b) for name in policies},
            "iothubowner-for-c": policy("iothubowner", c),
            "device-for-d": policy("device", d),
            "iothubowner-for-devices": policy("iothubowner", "/devices"),
            "iothubowner-for-messages": policy("iothubowner", "/messages"),
            "iothubowner-for-hub": policy("iothubowner", "/hub"),
            "iothubowner-for-stats": policy("iothubowner", "/statistics"),
            "device-for-a-events": policy("device", f"{a}/messages/events"),
            "iothubowner-for-dev": policy("iothubowner", "/dev"),
            "iothubowner-for-cell-": policy("iothubowner", "/devices/cell-"),
            "host-in-capitals": policy("iothubowner", host="LOCALHOST"),
            "words-in-capitals": policy("iothubowner", a.replace("devices", "DEVICES")),
            "host-another": policy("iothubowner", host="hub.example.test"),
            "host-longer": policy("iothubowner", host=f"{self.host}.example.test"),
            "host-shorter": policy("iothubowner", host=self.host.rsplit(".", 1)[0]),
            "ended-4-minutes-ago": policy("iothubowner", **four),
            "ended-6-minutes-ago": policy("iothubowner", **six),
            "policy-signature-changed": with_another_signature(policy("iothubowner")),
            "policy-expiry-changed": with_another_expiry(policy("iothubowner", **six)),
            "policy-resource-widened": with_another_resource(policy("iothubowner", a), self.host),
            "policy-renamed": policy("registryRead", name="iothubowner"),
            "policy-unknown": policy("iothubowner", name="owner"),
            "policy-signed-by-nothing": service.token(self.host, "", policy="iothubowner"),
            "policy-not-named": policy("iothubowner", name=None),
            "policy-of-another-login": policy("service"),
            "policy-signed-by-text": policy("iothubowner", raw_key=True),
            "a-primary": own("a"),
            "a-secondary": own("a", key=self.secondary_keys["a"]),
            "b-primary": own("b"),
            "c-primary": own("c"),
            "a-words-in-capitals": own("a", a.replace("devices", "DEVICES")),
            "a-for-events": own("a", f"{a}/messages/events"),
            "a-policy-empty": own("a") + "&skn=",
            "a-ended-4-minutes-ago": own("a", **four),
            "a-ended-6-minutes-ago": own("a", **six),
            "a-signature-changed": with_another_signature(own("a")),
            "a-expiry-changed": with_another_expiry(own("a", **six)),
            "a-resource-changed": with_another_resource(own("a"), self.host + b),
            "a-host-another": own("a", host="hub.example.test"),
            "a-naming-policy": own("a", policy="device"),
            "a-signed-by-text": own("a", raw_key=True),
            "a-signed-by-nothing": own("a", key=""),
            "a-replaced-key": own("a", key=self.replaced_key),
            "a-for-everything": own("a", ""),
            "a-for-devices": own("a", "/devices"),
            "a-for-cell-": own("a", "/devices/cell-"),
            "a-for-b": own("a", b),
            "a-for-c": own("a", c),
            "b-for-a": own("b", a),
            "c-for-a": own("c", a),
            "a-for-module": own("a", f"{a}/modules/m"),
            "d-primary": own("d"),
            "e-primary": own("e"),
            "f-former-key": own("f"),
            "f-signed-by-nothing": own("f", key=""),
            "g-former-key": own("g"),
            "nothing": None,
            "no-token": "",
            "bearer": f"Bearer {self.keys['a']}",
            "key-itself": self.keys["a"],
        }
        logins = {f"{name}{below}": name for name in policies for below in ("", "-for-a", "-for-b")}
        logins |= {"device-for-d": "device", "device-for-a-events": "device", "policy-unknown": "owner"}
        credentials = {
            name: Credential(token, login=logins.get(name, "iothubowner"))
            for name, token in tokens.items()
        }
        credentials |= {name: Credential(None, proof) for name, proof in self.proofs.items()}
        f = self.proofs["f-certificate"]
        return credentials | {
            "f-certificate+a": Credential(own("a"), f),
            "f-certificate+ended": Credential(own("a", **six), f),
            "f-certificate+service": Credential(policy("service"), f, "service"),
        }

    def ask(self, connection, name, what, device, locks):
        """One request over HTTPS; the answer is its status and what the hub calls the error."""
        operation, row = HTTPS[what], list(ROWS).index(name)
        refused = EXPECTED[name, "HTTPS", what, device] == REFUSED
        path = operation.path.format(
            device=DEVICES.get(device),
            new=f"new-{row}",
            lock=locks.get(device, uuid.uuid4()),
            feedback=locks.get("feedback", uuid.uuid4()),
        )
        headers, body = {}, None
        if operation.column == "write":
            # What is to be refused would have its effect; what is let in ends at its condition.
            headers["If-Match"] = "*" if refused else '"another"'
        if what == "write":
            keys = {"primaryKey": new_key(), "secondaryKey": new_key()}
            authentication = {"type": "sas", "symmetricKey": keys}
            body = {
                "deviceId": DEVICES[device], "status": "disabled", "authentication": authentication
            }
        elif what == "create":
            body = {"deviceId": f"new-{row}"}
        elif what == "bulk":
            body = [{"id": f"bulk-{row}", "importMode": "create"}]
        if what == "send":
            body = f"HTTPS {name}"
        elif body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(body)
        token = self.credentials[name].token
        if token is not None:
            headers["Authorization"] = token
        connection.request(
            operation.method, f"{path}?api-version={service.API_VERSION}", body, headers
        )
        answer = connection.getresponse()
        answer.read()
        if body is not None:
            # The hub ends the connection when it has refused a request without reading its body.
            connection.close()
        return " ".join(filter(None, (str(answer.status), answer.getheader("iothub-errorcode"))))

    def try_https(self, name, cells, locks):
        connection = http.client.HTTPSConnection(self.host, 443, context=self.contexts[name])
        answers = {cell: self.ask(connection, name, *cell[2:], locks) for cell in cells}
        connection.close()
        return answers

    def connect(self, name, device):
        token = self.credentials[name].token
        return Mqtt(self.hub, self.contexts[name], DEVICES[device], token)

    def try_mqtt(self, name, cells):
        """Connects once for each publish, because one that is refused ends the connection."""
        answers = {}
        for cell in cells:
            _, _, what, device = cell
            if what == "connect":
                mqtt = self.connect(name, device)
                answers[cell] = mqtt.code
            else:
                mqtt = self.connect(name, what.removeprefix("publish-as-"))
                answers[cell] = mqtt.code
                if mqtt.code == 0:
                    answers[cell] = mqtt.publish(DEVICES[device], f"MQTT {name}")
            mqtt.close()
        return answers

    def login(self, name, device):
        """User and password for SASL PLAIN, as a device or as a policy."""
        credential = self.credentials[name]
        user = f"{DEVICES[device]}@sas." if device else f"{credential.login}@sas.root."
        return user + self.host, credential.token or ""

    def try_plain(self, name, cells):
        return {
            cell: plain_code(self.hub, self.contexts[name], *self.login(name, cell[3]))
            for cell in cells
        }

    def visits(self, name, way, cells):
        """The AMQP connections on which the cells of one way to sign in are tried."""
        credential = self.credentials[name]
        if way == "ANONYMOUS":
            questions = tuple((cell, credential.token or "") for cell in cells)
            return [Visit(certificate=credential.certificate, questions=questions)]
        by_device, others = {}, []
        for cell in cells:
            # A connection is one device's by its certificate: the first that it asks for.
            if credential.certificate and cell[3]:
                by_device.setdefault(cell[3], []).append(cell)
            else:
                others.append(cell)
        groups = [others, *by_device.values()]
        if way == "CBS" and not lets_in(ROWS[name]["cbs"]):
            # The hub allows few links to who has not proved anything.
            groups = [
                group[start : start + STRANGERS_LINKS_MAX]
                for group in groups
                for start in range(0, len(group), STRANGERS_LINKS_MAX)
            ]
        visits = []
        for group in filter(None, groups):
            visit = Visit(certificate=credential.certificate)
            if way.startswith("PLAIN"):
                visit.login = self.login(name, way.removeprefix("PLAIN").removeprefix("-as-"))
            elif credential.token is not None:
                visit.put = ((name, "CBS", "put-token", None), credential.token)
            links = [cell for cell in group if cell[2] in LINKS]
            visit.links = tuple(
                (cell, LINKS[cell[2]][0], LINKS[cell[2]][1].format(device=DEVICES.get(cell[3])))
                for cell in links
            )
            visit.questions = tuple((cell, None) for cell in group if cell[2] == "question")
            visits.append(visit)
        return visits


def with_another_signature(token):
    """One bit of the signature is another; it is base64 of 32 bytes still."""
    front, rest = token.split("&sig=", 1)
    return f"{front}&sig={'B' if rest[0] == 'A' else 'A'}{rest[1:]}"


def with_another_expiry(token):
    """Good for a long time, if that were signed."""
    return "&".join(
        f"se={int(time.time()) + 3600}" if part.startswith("se=") else part
        for part in token.split("&")
    )


def with_another_resource(token, resource):
    word, rest = token.split("sr=", 1)
    quoted = resource.replace("/", "%2F")
    return f"{word}sr={quoted}&{rest.split('&', 1)[1]}"


#: AMQP connections made at once: fewer than the hub has unauthenticated ones of one address.
VISITS_MAX = 200


def is_effectless(cell, answer):
    """Whether the answer is a refusal on which nothing may follow.

    An MQTT publish that is refused is none: it takes a connection that is not.
    """
    refusals = {
        "connect": 5, "login": 1, "login-as": 1, "put-token": 401, "question": 401,
        "question-with-token": 401,
    }
    _, way, what, _ = cell
    if way == "HTTPS":
        return answer == REFUSED
    if what in LINKS:
        return answer != "open"
    return refusals.get(what) == answer


def try_cells(world, cells, locks, *, at_once):
    """The answers in some cells."""
    answers, visits = {}, []
    by_way = {}
    for cell in cells:
        by_way.setdefault(cell[:2], []).append(cell)
    for (name, way), group in by_way.items():
        if way == "HTTPS":
            answers |= world.try_https(name, group, locks)
            continue
        if way == "MQTT":
            answers |= world.try_mqtt(name, group)
            continue
        logins = [cell for cell in group if cell[2] in ("login", "login-as")]
        answers |= world.try_plain(name, logins)
        rest = [cell for cell in group if cell not in logins]
        if way == "CBS" and world.credentials[name].token is None:
            # There is no token to put before links are tried, so an empty one is put by itself.
            put = (name, "CBS", "put-token", None)
            if put in rest:
                certificate = world.credentials[name].certificate
                visits.append(Visit(certificate=certificate, put=(put, "")))
                rest.remove(put)
        if rest:
            visits += world.visits(name, way, rest)
    size = VISITS_MAX if at_once else 1
    for start in range(0, len(visits), size):
        merge(answers, Visits(world.hub, visits[start : start + size]).run())
    return answers


def merge(answers, told):
    """Adds answers. Every AMQP connection puts its token anew, and must be told the same."""
    for cell, answer in told.items():
        if answers.setdefault(cell, answer) != answer:
            answers[cell] = f"{answers[cell]}, another time {answer}"


def give_something_to_lose(world):
    """Messages that wait and messages that are locked, and feedback that is; returns the locks."""
    hub, policy = world.hub, world.policy_token("device")
    messages = "/devices/{}/messages/devicebound"

    def take(device):
        path = messages.format(DEVICES[device])
        answer = service.https(hub, "GET", path, authorization=policy)
        assert answer.status_code == 200, answer.text
        return f"{path}/{answer.headers['ETag'].strip(chr(34))}", answer

    service.send(hub, DEVICES["a"], b"told of", id="told-of", properties={"iothub-ack": "full"})
    path, _ = take("a")
    assert service.https(hub, "DELETE", path, authorization=policy).status_code == 204
    locks = {}
    deadline = time.monotonic() + 30
    while "feedback" not in locks:
        assert time.monotonic() < deadline, hub.log()[-2000:]
        hub.advance(service.FEEDBACK_PAUSE_SECONDS / 3)
        answer = service.https(hub, "GET", service.FEEDBACK)
        if answer.status_code == 200:
            locks["feedback"] = answer.headers["ETag"].strip('"')
    with service.amqp(hub) as connection:
        # A disabled device is sent nothing.
        for device in set(DEVICES) - {"d", "e"}:
            for body in (b"one", b"two"):
                address = messages.format(DEVICES[device])
                service.send_on(connection, proton.Message(body, inferred=True, address=address))
    for device in set(DEVICES) - {"d", "e"}:
        path, _ = take(device)
        locks[device] = path.rsplit("/", 1)[1]
    return locks


def state(world):
    """All that a credential might have changed and the registry or the queues would show."""
    listed = service.https(world.hub, "GET", "/devices").json()
    queues = {
        device: world.hub.admin("GET", f"/api/c2d/devices/{DEVICES[device]}/messages")["messages"]
        for device in set(DEVICES) - {"e"}
    }
    for messages in queues.values():
        for message in messages:
            # Worked out anew from two clocks, so that it may be a millisecond off.
            message.pop("lockedUntil")
    return {"devices": {entry["deviceId"]: entry for entry in listed}, "queues": queues}


def changes(before, after, path=()):
    """Where two states differ, and what stands there."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return [
            change for key in before for change in changes(before[key], after[key], (*path, key))
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return changes(dict(enumerate(before)), dict(enumerate(after)), path)
    return [] if before == after else [(path, before, after)]


@dataclass
class Tried:
    world: World
    answers: dict
    locks: dict
    before: dict
    after: dict
    #: A connection of device a that stood all the while in which everything was refused.
    standing: Mqtt


@pytest.fixture(scope="module")
def tried(hub_of_module, tmp_path_factory):
    """Everything was tried once, on one hub."""
    world = World(hub_of_module, tmp_path_factory.mktemp("certificates"))
    parts = {False: [], True: []}
    for cell, answer in EXPECTED.items():
        parts[is_effectless(cell, answer)].append(cell)
    answers = try_cells(world, parts[False], {}, at_once=False)
    locks = give_something_to_lose(world)
    standing = world.connect("a-primary", "a")
    assert standing.code == 0
    before = state(world)
    merge(answers, try_cells(world, parts[True], locks, at_once=True))
    yield Tried(world, answers, locks, before, state(world), standing)
    standing.close()


def test_the_tables_hold_every_cell():
    # An operation or a device that fell out of the tables would be missed by nobody.
    for part, count in ((over_https, 71), (over_mqtt, 7), (over_amqp, 30)):
        cells = [cell for cell, _ in part() if cell[0] == "nothing"]
        assert len(set(cells)) == count, part


@pytest.mark.parametrize("name", ROWS)
def test_a_credential_opens_what_it_should_and_nothing_else(tried, name):
    expected = {cell[1:]: answer for cell, answer in EXPECTED.items() if cell[0] == name}
    wrong = {
        cell: {"expected": answer, "got": tried.answers.get((name, *cell), "no answer")}
        for cell, answer in expected.items()
        if tried.answers.get((name, *cell)) != answer
    }
    assert not wrong, "\n".join(f"{cell}: {what}" for cell, what in wrong.items())


def test_what_was_refused_has_changed_nothing(tried):
    assert changes(tried.before, tried.after) == []
    for device in set(DEVICES) - {"d", "e"}:
        states = [message["state"] for message in tried.after["queues"][device]]
        assert states == ["locked", "enqueued"], device


def test_only_those_have_made_devices_who_may(tried):
    made = {
        f"{kind}-{row}"
        for row, marks in enumerate(ROWS.values())
        if marks["make"] == "yes"
        for kind in ("new", "bulk")
    }
    assert tried.after["devices"].keys() == made | (set(DEVICES.values()) - {DEVICES["e"]})


def test_devices_keep_their_keys_their_connection_and_what_they_hold(tried):
    world = tried.world
    for device in "abcd":
        keys = tried.after["devices"][DEVICES[device]]["authentication"]["symmetricKey"]
        assert keys["primaryKey"] == world.keys[device]
        assert keys["secondaryKey"] == world.secondary_keys[device]
    assert tried.standing.publish(DEVICES["a"], "standing")
    token = world.policy_token("device")
    for device in set(DEVICES) - {"d", "e"}:
        path = f"/devices/{DEVICES[device]}/messages/devicebound/{tried.locks[device]}"
        assert service.https(world.hub, "DELETE", path, authorization=token).status_code == 204
    path = f"{service.FEEDBACK}/{tried.locks['feedback']}"
    assert service.https(world.hub, "DELETE", path).status_code == 204


def test_telemetry_is_of_those_alone_who_were_let_in(tried):
    expected = []
    for (name, way, what, device), answer in EXPECTED.items():
        if (way, what, answer) == ("HTTPS", "send", "204"):
            expected.append((DEVICES[device], f"HTTPS {name}"))
        elif way == "MQTT" and answer is True:
            expected.append((DEVICES[device], f"MQTT {name}"))
    client = consumer(tried.world.hub)
    ends = positions(client).values()
    # Sequence numbers begin with 0, and what holds none ends with -1.
    count = sum(end + 1 for end in ends)
    events = read_until(client, lambda events: len(events) >= count)
    stamp = b"iothub-connection-device-id"
    got = [
        (event.system_properties[stamp].decode(), body_of(event).decode()) for _, event in events
    ]
    # Sent by another test, which may have run or not.
    got = [entry for entry in got if entry != (DEVICES["a"], "standing")]
    assert sorted(got) == sorted(expected)
