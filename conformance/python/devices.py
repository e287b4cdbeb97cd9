"""Devices of every library and transport behind one small interface, for the compatibility matrix.

Each library has a class. What a library does not offer raises NotOffered with the library's own
words, or after a look at the library that shows the lack, so that a newer version which does offer
it makes the test fail.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import queue
import threading
import time
import urllib.parse
from dataclasses import dataclass

import paho.mqtt.client as mqtt
import proton
import proton.utils
from azure.iot.device import X509, IoTHubDeviceClient, IoTHubModuleClient, Message
from azure.iot.device.exceptions import CredentialError

from certificates import Certificate
from clients import NODE, WAIT_SECONDS_MAX, Script
from service import token

#: The longest that the Python SDK takes, so that moving the hub's clock is not taken for silence.
KEEP_ALIVE_SECONDS = 1740
#: How long the slowest library takes to come back.
RECOVERY_SECONDS_MAX = 90
#: How long a token lives that a client is to replace: short, and long enough for a slow machine.
SHORT_LIFE_SECONDS = 100


class NotOffered(Exception):
    """The library does not offer this; the text says how that shows."""


class Refused(Exception):
    """The hub did not take the credentials."""


class NotSent(Exception):
    """The library told the application that the hub did not take a message; the text says how."""


@dataclass(frozen=True)
class Who:
    """An identity and the one thing that it proves itself by."""

    host: str
    device_id: str
    module_id: str | None = None
    key: str | None = None
    token: str | None = None
    certificate: Certificate | None = None

    @property
    def connection_string(self):
        module = f"ModuleId={self.module_id};" if self.module_id else ""
        return (
            f"HostName={self.host};DeviceId={self.device_id};{module}SharedAccessKey={self.key}"
        )


def token_of(host, device_id, key, *, module_id=None, life=24 * 3600):
    """A token as an application makes one."""
    module = f"/modules/{module_id}" if module_id else ""
    return token(f"{host}/devices/{device_id}{module}", key, life=life)


@dataclass(frozen=True)
class Came:
    """A message to a device: what the cells look at, and the library's own object."""

    body: bytes
    properties: dict
    message_id: str
    own: object = None


def check_absent(where, *words):
    """That no public name of a class or module has any of these words in it."""
    found = [n for n in dir(where) if n[0] != "_" and any(w in n.lower() for w in words)]
    assert not found, f"{where} has {found}: the matrix should use it"


class Failed(Exception):
    """A library failed at something other than taking or sending messages."""


class Device:
    """What a cell of the matrix may ask of any of them.

    `send` returns when the hub has the message. `next` is the next message after `listen`. What a
    method returns is None, or a note on how the library does it.
    """

    #: Whether its second token can be made to live long, whatever the first one does.
    renews_for_long = False

    def foresee(self, verdict):
        """Tells what will become of the next message, for libraries that must know before."""

    def after_restart(self):
        """Whatever the application has to do; most libraries come back by themselves."""

    def after_fault(self, fault):
        """The same when the hub was not stopped, but the device asked for this fault."""
        return self.after_restart()

    def until_cut_off(self):
        """Until the library has seen that the hub has ended its connection, where it would tell."""

    def after_refusal(self):
        """Whatever the application has to do when the hub has refused the device for some time."""


TOPICS = "MQTT has none; by publishing to a topic that is this hub's own, see operations.md"


def _in_time(call, *given):
    """Calls the Python SDK, which waits for ever when its connection is lost at certain moments."""
    done = concurrent.futures.Future()

    def run():
        try:
            done.set_result(call(*given))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(timeout=WAIT_SECONDS_MAX)


class PythonDevice(Device):
    """azure-iot-device of Python. It completes each message when its handler has been called."""

    def __init__(self, hub, who, *, websocket, short_life=False):
        kind = IoTHubModuleClient if who.module_id else IoTHubDeviceClient
        options = {
            "server_verification_cert": hub.ca.read_text(),
            "websockets": websocket,
            "keep_alive": KEEP_ALIVE_SECONDS,
            # Else ten seconds, for which the cells would wait.
            "connection_retry_interval": 1,
        }
        if who.certificate:
            x509 = X509(str(who.certificate.certificate), str(who.certificate.key))
            self.client = kind.create_from_x509_certificate(
                x509, who.host, who.device_id, **options
            )
        elif who.token:
            self.client = kind.create_from_sastoken(who.token, **options)
        else:
            if short_life:
                # The SDK renews 120 s before the end: soon, and not while the cell looks at it.
                options["sastoken_ttl"] = 125
            self.client = kind.create_from_connection_string(who.connection_string, **options)
        self.states = queue.Queue()
        self.messages = queue.Queue()
        self.client.on_connection_state_change = lambda: self.states.put(self.client.connected)
        try:
            _in_time(self.client.connect)
        except CredentialError as error:
            self.close()
            raise Refused(str(error)) from error
        assert self.states.get(timeout=WAIT_SECONDS_MAX) is True

    def send(self, body, properties):
        message = Message(body)
        message.custom_properties.update(properties)
        try:
            _in_time(self.client.send_message, message)
        except CredentialError as error:
            raise Refused(str(error)) from error

    def batch(self, bodies):
        check_absent(self.client, "batch", "messages")
        raise NotOffered("the library has no method for it")

    def after_restart(self):
        # The SDK refuses to send while it has no connection.
        while self.states.get(timeout=WAIT_SECONDS_MAX) is not True:
            pass

    def until_cut_off(self):
        # What is sent before that is never answered, not even when the library gives up.
        assert self.states.get(timeout=WAIT_SECONDS_MAX) is False

    def listen(self):
        self.client.on_message_received = self.messages.put

    def next(self):
        message = self.messages.get(timeout=WAIT_SECONDS_MAX)
        return Came(message.data, dict(message.custom_properties), message.message_id)

    def complete(self, message):
        check_absent(self.client, "complete")
        return "by the library, when it hands the message to the application"

    def abandon(self, message):
        check_absent(self.client, "abandon", "release")
        raise NotOffered("the library has no method for it; it completes every message")

    def reject(self, message):
        check_absent(self.client, "reject")
        raise NotOffered("the library has no method for it; it completes every message")

    def wait_until_renewed(self):
        """Until the library, which renews by a new connection, has made one."""
        for expected in (False, True):
            assert self.states.get(timeout=WAIT_SECONDS_MAX) is expected

    def replace_token(self, new):
        _in_time(self.client.update_sastoken, new)
        # It returns when the old connection has ended; what is sent then may find none.
        self.wait_until_renewed()

    def close(self):
        # What came before tells of a connection that was lost.
        with contextlib.suppress(TimeoutError):
            _in_time(self.client.shutdown)


class NodeDevice(Device):
    """azure-iot-device of Node.js in a process of its own."""

    renews_for_long = True

    def __init__(self, hub, who, *, transport, short_life=False):
        self.transport = transport
        self.answers, self.messages, self.gone = queue.Queue(), queue.Queue(), queue.Queue()
        if who.module_id and transport == "http":
            # With a module's token it calls upon the device's path.
            source = NODE / "node_modules/azure-iot-device-http/dist/http.js"
            assert "moduleEventPath" not in source.read_text()
            raise NotOffered("the library sends to the device's path, never to a module's")
        self.script = Script(hub, transport, script="device.js")
        threading.Thread(target=self._sort, daemon=True).start()
        options = {}
        if transport.startswith("mqtt"):
            options["keepalive"] = KEEP_ALIVE_SECONDS
        if short_life:
            options["tokenRenewal"] = _renewal(SHORT_LIFE_SECONDS, SHORT_LIFE_SECONDS // 2)
        if who.certificate:
            proof = {
                "x509": {
                    "host": who.host,
                    "deviceId": who.device_id,
                    "cert": who.certificate.certificate.read_text(),
                    "key": who.certificate.key.read_text(),
                }
            }
        elif who.token:
            proof = {"token": who.token}
        else:
            proof = {"connectionString": who.connection_string}
        try:
            self._do("open", isModule=bool(who.module_id), options=options, **proof)
        except BaseException:
            self.close()
            raise

    def _sort(self):
        """Keeps messages, which come at any time, apart from answers."""
        while True:
            line = self.script.lines.get()
            if "came" in line:
                self.messages.put(line["came"])
            elif "gone" in line:
                self.gone.put(line["gone"])
            else:
                self.answers.put(line)
                if line == {"error": "the script ended"}:
                    return

    def _do(self, what, **how):
        self.script.say({"what": what} | how)
        # Longer than the SDK takes to come back after a restart.
        answer = self.answers.get(timeout=RECOVERY_SECONDS_MAX)
        if answer.get("error") == "NotImplementedError":
            raise NotOffered(f"NotImplementedError: {answer['message']}")
        if answer.get("error") == "UnauthorizedError":
            raise Refused(answer["message"])
        if "error" in answer:
            raise Failed(answer["error"], answer.get("message"))
        assert answer == {"done": True}, answer

    def send(self, body, properties):
        try:
            self._do("send", body=base64.b64encode(body).decode(), properties=properties)
        except Failed as error:
            # The name alone: the text may tell of the attempt.
            raise NotSent(error.args[0]) from error

    def batch(self, bodies):
        self._do("batch", bodies=[base64.b64encode(body).decode() for body in bodies])

    def listen(self):
        self._do("listen")

    def next(self):
        line = self._polled() if self.transport == "http" else self._pushed()
        # Over HTTP the SDK leaves the prefix on.
        properties = {
            name.removeprefix("iothub-app-"): value for name, value in line["properties"].items()
        }
        return Came(base64.b64decode(line["body"]), properties, line["messageId"], line["number"])

    def _pushed(self):
        return self.messages.get(timeout=WAIT_SECONDS_MAX)

    def _polled(self):
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            # The SDK is silent when nothing is there, and so it is asked again.
            self.script.say({"what": "poll"})
            with contextlib.suppress(queue.Empty):
                return self.messages.get(timeout=3)
            assert time.monotonic() < deadline, "no message came"

    def complete(self, message):
        self._do("complete", number=message.own)

    def abandon(self, message):
        self._do("abandon", number=message.own)

    def reject(self, message):
        self._do("reject", number=message.own)

    def wait_until_renewed(self):
        """Tells the library that its token lives for a day, which makes it renew it at once."""
        self._do("options", options={"tokenRenewal": _renewal(24 * 3600, 900)})

    def replace_token(self, new):
        self._do("token", token=new)

    def after_restart(self):
        if self.transport == "http":
            return "each request is given a connection of its own"
        return None

    def after_fault(self, fault):
        if fault != "KillAmqpConnection":
            return self.after_restart()
        # It waits 45 s for the end of links that have ended with their connection.
        self.gone.get(timeout=RECOVERY_SECONDS_MAX)
        self._do("reopen")
        return "the library says so after 45 s; the application opens it anew and listens again"

    def after_refusal(self):
        try:
            self.gone.get(timeout=1)
        except queue.Empty:
            return None
        try:
            self._do("reopen")
        except Failed:
            # It was still at ending what it had; an application tries again.
            self._do("reopen")
        return "the application opens the library anew"

    def close(self):
        self.script.close()


def _renewal(life, margin):
    return {"tokenValidTimeInSeconds": life, "tokenRenewalMarginInSeconds": margin}


class PahoDevice(Device):
    """paho-mqtt: MQTT and nothing else, so that the application does what an SDK would."""

    def __init__(self, hub, who, *, websocket, short_life=False):
        if who.key:
            check_absent(mqtt.Client, "sas", "shared", "connection_string")
            raise NotOffered("the library takes a password; the application makes the token")
        self.path = f"{who.device_id}/modules/{who.module_id}" if who.module_id else who.device_id
        client_id = f"{who.device_id}/{who.module_id}" if who.module_id else who.device_id
        self.user = f"{who.host}/{client_id}/?api-version=2021-04-12"
        self.messages, self.connections = queue.Queue(), queue.Queue()
        self.acknowledged, self.subscribed = queue.Queue(), queue.Queue()
        self.gone = threading.Event()
        self.topic = None
        self.verdicts = queue.Queue()
        self.client = mqtt.Client(
            client_id, clean_session=False, transport="websockets" if websocket else "tcp"
        )
        if websocket:
            self.client.ws_set_options(path="/$iothub/websocket")
        if who.certificate:
            self.client.tls_set(
                str(hub.ca), str(who.certificate.certificate), str(who.certificate.key)
            )
            self.client.username_pw_set(self.user)
        else:
            self.client.tls_set(str(hub.ca))
            self.client.username_pw_set(self.user, who.token)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda *given: self.connections.put(given[3])
        self.client.on_disconnect = lambda *_: self.gone.set()
        self.client.on_publish = lambda _client, _data, packet: self.acknowledged.put(packet)
        self.client.on_subscribe = lambda *given: self.subscribed.put(given[3])
        self.client.on_message = self._on_message
        self.client.connect(
            hub.address, 443 if websocket else 8883, keepalive=KEEP_ALIVE_SECONDS
        )
        self.client.loop_start()
        self._wait_until_connected()

    def _wait_until_connected(self):
        result = self.connections.get(timeout=WAIT_SECONDS_MAX)
        if result != 0:
            self.close()
            raise Refused(f"CONNACK {result}")

    def _on_message(self, _client, _data, message):
        came = self._read(message)
        with contextlib.suppress(queue.Empty):
            # Before the acknowledgement, which the library sends when this returns.
            verdict = self.verdicts.get_nowait()
            escaped = urllib.parse.quote(came.message_id, safe="")
            self.client.publish(f"$fieldpost/c2d/{verdict}/?$mid={escaped}", b"", 1)
        self.messages.put(came)

    def _read(self, message):
        bag = urllib.parse.parse_qsl(message.topic.rpartition("/")[2], keep_blank_values=True)
        properties = dict(bag)
        own = {name: value for name, value in properties.items() if not name.startswith("$.")}
        return Came(message.payload, own, properties["$.mid"])

    def send(self, body, properties):
        bag = urllib.parse.urlencode(properties, quote_via=urllib.parse.quote)
        sent = self.client.publish(f"devices/{self.path}/messages/events/{bag}", body, 1)
        while self.acknowledged.get(timeout=WAIT_SECONDS_MAX) != sent.mid:
            # Of a verdict.
            pass

    def batch(self, bodies):
        check_absent(mqtt.Client, "batch")
        raise NotOffered("MQTT has no batches")

    def listen(self):
        self.client.subscribe(f"devices/{self.path}/messages/devicebound/#", 1)
        assert self.subscribed.get(timeout=WAIT_SECONDS_MAX) == (1,)

    def next(self):
        return self.messages.get(timeout=WAIT_SECONDS_MAX)

    def complete(self, message):
        return "by the library, when the application's handler returns"

    def foresee(self, verdict):
        self.verdicts.put(verdict)

    def abandon(self, message):
        # Published already, before the library acknowledged the message.
        return TOPICS

    reject = abandon

    def replace_token(self, new):
        # An MQTT connection lives by the token that it began with.
        self.client.disconnect()
        assert self.gone.wait(WAIT_SECONDS_MAX)
        self.client.loop_stop()
        self.client.username_pw_set(self.user, new)
        self.client.reconnect()
        self.client.loop_start()
        self._wait_until_connected()
        return "by a new connection, which the application asks for"

    def after_restart(self):
        assert self.gone.wait(WAIT_SECONDS_MAX)
        self.gone.clear()
        self._wait_until_connected()

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


class ProtonDevice(Device):
    """python-qpid-proton: AMQP 1.0 and nothing else; the application puts tokens by CBS."""

    def __init__(self, hub, who, *, short_life=False):
        if who.key:
            check_absent(proton.utils.BlockingConnection, "sas", "shared", "token")
            raise NotOffered("the library takes a password; the application makes the token")
        self.hub, self.who, self.token = hub, who, who.token
        module = f"/modules/{who.module_id}" if who.module_id else ""
        self.path = f"/devices/{who.device_id}{module}/messages"
        self.receiver = None
        self._connect()

    def _connect(self):
        domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
        domain.set_trusted_ca_db(str(self.hub.ca))
        domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER)
        if self.who.certificate:
            certificate = self.who.certificate
            domain.set_credentials(str(certificate.certificate), str(certificate.key), None)
        self.connection = proton.utils.BlockingConnection(
            f"amqps://{self.hub.address}:5671",
            timeout=WAIT_SECONDS_MAX,
            ssl_domain=domain,
            allowed_mechs="EXTERNAL" if self.who.certificate else "ANONYMOUS",
        )
        try:
            if self.token:
                self._put_token()
            self.sender = self.connection.create_sender(f"{self.path}/events")
        except proton.utils.LinkDetached as error:
            self.close()
            if error.condition == "amqp:unauthorized-access":
                raise Refused(str(error)) from error
            raise
        except BaseException:
            self.close()
            raise

    def _put_token(self):
        requests = self.connection.create_sender("$cbs")
        answers = self.connection.create_receiver("$cbs", credit=1)
        about = {
            "operation": "put-token",
            "type": "servicebus.windows.net:sastoken",
            "name": f"{self.who.host}/devices/{self.who.device_id}",
        }
        requests.send(
            proton.Message(
                id="token", address="$cbs", reply_to="cbs", properties=about, body=self.token
            )
        )
        # The hub has settled it already.
        answer = answers.receive()
        requests.close()
        answers.close()
        assert answer.correlation_id == "token"
        status = answer.properties["status-code"]
        if status == 401:
            raise Refused(answer.properties["status-description"])
        assert status == 200, answer.properties

    def send(self, body, properties):
        message = proton.Message(body=body, inferred=True, properties=dict(properties))
        try:
            delivery = self.sender.send(message, error_states=())
        except proton.utils.LinkDetached as error:
            raise NotSent(error.condition) from error
        if delivery.remote_state != proton.Delivery.ACCEPTED:
            raise NotSent(delivery.remote.condition.name)

    def batch(self, bodies):
        check_absent(proton.Delivery, "format")
        check_absent(proton.Sender, "format", "batch")
        raise NotOffered("the library cannot set the message format that marks a batch")

    def listen(self):
        self.receiver = self.connection.create_receiver(f"{self.path}/devicebound", credit=10)

    def next(self):
        message = self.receiver.receive(timeout=WAIT_SECONDS_MAX)
        # A view of memory that is used again.
        return Came(bytes(message.body), dict(message.properties or {}), message.id)

    def complete(self, message):
        self.receiver.accept()
        self._flush()

    def abandon(self, message):
        # By the outcome `released`, as SDKs do, and not by `modified`.
        self.receiver.release(delivered=False)
        self._flush()

    def reject(self, message):
        self.receiver.reject()
        self._flush()

    def _flush(self):
        """Writes what waits, which this library does only while it waits for something."""
        self.connection.wait(lambda: self.connection.conn.transport.pending() == 0)

    def replace_token(self, new):
        self.token = new
        self._put_token()
        return "by the application, on the same connection"

    def after_restart(self):
        """The blocking client of this library says that the connection ended; it makes none."""
        try:
            self.connection.wait(lambda: False, timeout=WAIT_SECONDS_MAX)
        except (proton.utils.ConnectionClosed, proton.ConnectionException) as ended:
            assert not isinstance(ended, proton.Timeout), "the connection did not end"
        except proton.utils.LinkDetached:
            pass
        return self._connect_anew()

    def _connect_anew(self):
        self._connect()
        if self.receiver:
            self.listen()
        return "by a new connection, which the application makes"

    def after_fault(self, fault):
        if fault not in ("KillAmqpSession", "KillAmqpD2CLink", "KillAmqpC2DLink"):
            return self.after_restart()
        with contextlib.suppress(proton.utils.LinkDetached):
            self.connection.wait(self._has_ended, timeout=WAIT_SECONDS_MAX)
        if fault == "KillAmqpSession":
            # The blocking client has one session for each connection.
            self.close()
            return self._connect_anew()
        if fault == "KillAmqpD2CLink":
            self.sender = self.connection.create_sender(f"{self.path}/events")
        else:
            self.listen()
        return "by a new link on the same connection, which the application makes"

    def _has_ended(self):
        """Whether the hub has ended a link, or the session of the links."""
        links = [end.link for end in (self.sender, self.receiver) if end]
        ends = links + [link.session for link in links]
        return any(end.state & proton.Endpoint.REMOTE_CLOSED for end in ends)

    def after_refusal(self):
        if not self._has_ended():
            return None
        self.close()
        return self._connect_anew()

    def close(self):
        with contextlib.suppress(proton.ProtonException):
            self.connection.close()


@dataclass(frozen=True)
class Row:
    """A row of the matrix: a library in its installed version over one transport."""

    name: str
    library: str
    version: str
    transport: str
    make: object
    #: The features that the library does not offer. Each must show that it does not.
    lacks: frozenset

    def open(self, hub, who, **options):
        return self.make(hub, who, **options)


def _python(name):
    return f"{name} (Python)", importlib.metadata.version(name)


def _node(*names):
    """What the SDK of Node.js is for one transport: two packages."""
    versions = {}
    for name in names:
        package = json.loads((NODE / "node_modules" / name / "package.json").read_text())
        versions[name] = package["version"]
    text = " ".join(versions.values())
    return f"{' with '.join(versions)} (Node.js)", text.replace(" ", " with ", 1)


def _rows():
    python, paho = _python("azure-iot-device"), _python("paho-mqtt")
    over_mqtt = frozenset({"batch", "abandon", "reject"})
    inputs_alone = frozenset({"module receiving"})
    for suffix, words, websocket in (("", "MQTT", False), ("-ws", "MQTT over WebSocket", True)):
        yield Row(
            f"python-mqtt{suffix}", *python, words,
            lambda *given, w=websocket, **more: PythonDevice(*given, websocket=w, **more),
            over_mqtt | inputs_alone,
        )
    for transport, words, lacks in (
        ("mqtt", "MQTT", over_mqtt | inputs_alone),
        ("mqtt-ws", "MQTT over WebSocket", over_mqtt | inputs_alone),
        ("amqp", "AMQP", frozenset({"batch"}) | inputs_alone),
        ("amqp-ws", "AMQP over WebSocket", frozenset({"batch"}) | inputs_alone),
        ("http", "HTTPS", frozenset({"module", "module receiving"})),
    ):
        package = f"azure-iot-device-{transport.removesuffix('-ws')}"
        yield Row(
            f"node-{transport}", *_node("azure-iot-device", package), words,
            lambda *given, t=transport, **more: NodeDevice(*given, transport=t, **more),
            lacks,
        )
    for suffix, words, websocket in (("", "MQTT", False), ("-ws", "MQTT over WebSocket", True)):
        yield Row(
            f"paho{suffix}", *paho, words,
            lambda *given, w=websocket, **more: PahoDevice(*given, websocket=w, **more),
            frozenset({"batch", "key"}),
        )
    yield Row(
        "proton", *_python("python-qpid-proton"), "AMQP", ProtonDevice,
        frozenset({"batch", "key"}),
    )


#: The faults that a device may ask for, and the protocols that have what they end.
FAULTS = {
    "KillTcp": ("MQTT", "AMQP"),
    "ShutDownMqtt": ("MQTT",),
    "ShutDownAmqp": ("AMQP",),
    "KillAmqpConnection": ("AMQP",),
    "KillAmqpSession": ("AMQP",),
    "KillAmqpD2CLink": ("AMQP",),
    "KillAmqpC2DLink": ("AMQP",),
}
#: Those by which the hub refuses the device for some time, over every protocol.
STATES = ("InvokeThrottling", "InvokeMaxMessageQuota", "InvokeAuthError")


def _without_faults_of_others(row):
    protocol = row.transport.split()[0]
    others = {f"after: {fault}" for fault, of in FAULTS.items() if protocol not in of}
    return dataclasses.replace(row, lacks=row.lacks | others)


ROWS = {row.name: _without_faults_of_others(row) for row in _rows()}
