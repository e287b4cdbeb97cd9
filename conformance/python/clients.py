"""Clients of both sides: the unmodified SDKs of Python and Node.js, and paho-mqtt."""

import base64
import json
import os
import queue
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

import paho.mqtt.client as mqtt
from azure.iot.device import IoTHubDeviceClient
from azure.iot.hub import IoTHubRegistryManager
from uamqp import TransportType

from hub import millis
from service import FEEDBACK_PAUSE_SECONDS, HttpsDevice, token

NODE = Path(__file__).resolve().parents[1] / "node"
WAIT_SECONDS_MAX = 30
FEEDBACK_TYPE = "application/vnd.microsoft.iothub.feedback.json"


class Script:
    """A script of conformance/node, a role of c2d.js unless told: lines of JSON in and out."""

    def __init__(self, hub, *arguments, script="c2d.js", **environment):
        self.process = subprocess.Popen(
            ["node", script, *arguments],
            cwd=NODE,
            env=os.environ
            | {"NODE_EXTRA_CA_CERTS": str(hub.ca), "CA": hub.ca.read_text()}
            | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self.next() == {"ready": True}

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put({"error": "the script ended"})

    def say(self, value):
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def next(self, timeout=WAIT_SECONDS_MAX):
        return self.lines.get(timeout=timeout)

    def close(self):
        self.process.stdin.close()
        self.process.wait(WAIT_SECONDS_MAX)


class SendFailed(Exception):
    """An SDK reported that a message was not sent; its words are the exception's name in Node.js."""


class PythonSender:
    """`send_c2d_message` of azure-iot-hub."""

    def __init__(self, hub, transport):
        self.back = IoTHubRegistryManager.from_connection_string(hub.service_string(), transport)

    def send(self, device_id, body, properties=None, *, ack=None, **system):
        asked = {} if ack is None else {"iothub-ack": ack}
        try:
            self.back.send_c2d_message(device_id, body, (properties or {}) | asked | system)
        except Exception as error:
            raise SendFailed(str(error)) from error

    def close(self):
        self.back.amqp_svc_client.disconnect_sync()


class NodeSender:
    """`Client.send` of azure-iothub."""

    def __init__(self, hub, transport):
        self.script = Script(hub, "send", transport, SERVICE_STRING=hub.service_string())

    def send(self, device_id, body, properties=None, *, ack=None, **system):
        asked = {} if ack is None else {"ack": ack}
        encoded = base64.b64encode(body).decode()
        self.script.say(
            {"deviceId": device_id, "body": encoded, "properties": properties or {}} | asked | system
        )
        answer = self.script.next()
        if answer != {"sent": True}:
            raise SendFailed(answer["error"])

    def close(self):
        self.script.close()


class NodeFeedback:
    """`getFeedbackReceiver` of azure-iothub, for what is told of one device.

    The SDK hands over the records as the JSON that came. To be opened when the clock has made its
    large moves: the SDK is silent while it waits.
    """

    def __init__(self, hub, device, transport="amqp"):
        self.hub, self.device = hub, device
        self.script = Script(hub, "feedback", transport, SERVICE_STRING=hub.service_string())
        self.records = []

    def until(self, message_id):
        """All records up to that of a message; the clock is moved past the hub's pauses.

        Records come in the order of what they tell of, so what is owed for anything that happened
        to the same device before is among them.
        """
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        # Longer each time, so that a slow machine does not move the clock beyond what the hub
        # takes for a dead connection.
        patience = 0.1
        while not any(record.get("originalMessageId") == message_id for record in self.records):
            assert time.monotonic() < deadline, (message_id, self.records, self.hub.log()[-2000:])
            try:
                line = self.script.next(timeout=patience)
            except queue.Empty:
                patience *= 1.5
                self.hub.advance(FEEDBACK_PAUSE_SECONDS / 3)
                continue
            assert line.get("contentType") == FEEDBACK_TYPE, line
            if line["record"]["deviceId"] == self.device.id:
                self.records.append(line["record"])
        return self.records

    def close(self):
        self.script.close()


class PythonReceiver:
    """The message handler of azure-iot-device; it completes what it receives by itself."""

    def __init__(self, hub, device, websocket):
        self.client = IoTHubDeviceClient.create_from_connection_string(
            device.connection_string,
            server_verification_cert=hub.ca.read_text(),
            websockets=websocket,
            # The longest, so that moving the clock is not taken for silence.
            keep_alive=1740,
        )
        self.messages = queue.Queue()
        self.client.connect()
        self.client.on_message_received = self.messages.put

    def next(self):
        message = self.messages.get(timeout=WAIT_SECONDS_MAX)
        return {
            "body": message.data,
            "properties": dict(message.custom_properties),
            "messageId": message.message_id,
            "correlationId": message.correlation_id,
            "userId": message.user_id,
            "contentType": message.content_type,
            "contentEncoding": message.content_encoding,
            "expiryTimeUtc": millis(message.expiry_time_utc),
            "ack": message.ack,
        }

    def close(self):
        self.client.shutdown()


class NodeReceiver:
    """The message event of azure-iot-device over MQTT, each message completed."""

    def __init__(self, hub, device, transport):
        self.script = Script(hub, "receive", transport, DEVICE_STRING=device.connection_string)

    def next(self):
        message = _shown_by_node(self.script.next())
        # The SDK leaves it among the application properties.
        message["ack"] = message["properties"].pop("iothub-ack", None)
        return message

    def close(self):
        self.script.close()


class NodePoller:
    """azure-iot-device-http, which asks for a message when it is told to."""

    def __init__(self, hub, device):
        self.script = Script(hub, "poll", "http", DEVICE_STRING=device.connection_string)

    def poll(self):
        """The next message, locked. There must be one: the SDK is silent when there is none."""
        message = _shown_by_node(self.ask())
        prefix = "iothub-app-"
        # The SDK leaves the prefix on.
        assert all(name.startswith(prefix) for name in message["properties"])
        message["properties"] = {
            name.removeprefix(prefix): value for name, value in message["properties"].items()
        }
        return message

    def ask(self):
        """What the SDK says to one request: a message, or an error with its HTTP status."""
        self.script.say({"what": "poll"})
        return self.script.next()

    def settle(self, what, message):
        """Completes, rejects or abandons; returns the HTTP status of a refusal, None for success."""
        self.script.say({"what": what, "lock": message["lockToken"]})
        answer = self.script.next()
        return None if answer == {"settled": True} else answer["status"]

    def next(self):
        message = self.poll()
        assert self.settle("complete", message) is None
        return message

    def close(self):
        self.script.close()


def _shown_by_node(line):
    assert "error" not in line, line
    # The SDK has empty texts where nothing came.
    message = {name: None if value == "" else value for name, value in line.items()}
    return message | {
        "body": base64.b64decode(line["body"]),
        "expiryTimeUtc": millis(line["expiryTimeUtc"]),
    }


class RawPoller:
    """A device that speaks HTTPS without an SDK, and so sees all headers."""

    def __init__(self, hub, device):
        self.device = HttpsDevice(hub, device)

    def next(self):
        answer = self.device.receive()
        assert answer is not None
        assert self.device.complete(answer) == 204
        headers = {name.lower(): value for name, value in answer.headers.items()}
        prefix = "iothub-app-"
        return {
            "body": answer.content,
            "properties": {
                name.removeprefix(prefix): value
                for name, value in headers.items()
                if name.startswith(prefix)
            },
            "messageId": headers.get("iothub-messageid"),
            "correlationId": headers.get("iothub-correlationid"),
            "userId": headers.get("iothub-userid"),
            "to": headers.get("iothub-to"),
            "contentType": headers.get("iothub-contenttype"),
            "contentEncoding": headers.get("iothub-contentencoding"),
            "expiryTimeUtc": millis(headers["iothub-expiry"]),
            "ack": headers.get("iothub-ack"),
            "enqueuedTime": millis(headers["iothub-enqueuedtime"]),
            "sequenceNumber": int(headers["iothub-sequencenumber"]),
            "deliveryCount": int(headers["iothub-deliverycount"]),
        }

    def close(self):
        pass


class Paho:
    """A paho client for a device, with every step awaited."""

    def __init__(self, hub, device, *, clean=True, protocol=mqtt.MQTTv311, will=None, keepalive=60):
        self.device = device
        self.connected, self.gone = threading.Event(), threading.Event()
        self.published, self.subscribed = threading.Event(), threading.Event()
        self.result = self.session_present = None
        self.messages = queue.Queue()
        #: Called with each message before it is acknowledged.
        self.on_message = lambda message: None
        self.client = mqtt.Client(device.id, clean_session=clean, protocol=protocol)
        self.client.username_pw_set(
            f"{hub.address}/{device.id}/?api-version=2021-04-12",
            token(f"{hub.address}/devices/{device.id}", device.key),
        )
        self.client.tls_set(str(hub.ca))
        self.client.reconnect_delay_set(60, 60)
        if will:
            self.client.will_set(*will)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = lambda *_: self.gone.set()
        self.client.on_publish = lambda *_: self.published.set()
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        self.client.connect(hub.address, 8883, keepalive=keepalive)
        self.client.loop_start()
        assert self.connected.wait(WAIT_SECONDS_MAX)

    def _on_connect(self, client, userdata, flags, result):
        self.result, self.session_present = result, flags["session present"]
        self.connected.set()

    def _on_subscribe(self, client, userdata, mid, granted):
        self.granted = granted
        self.subscribed.set()

    def _on_message(self, client, userdata, message):
        self.on_message(message)
        self.messages.put(message)

    def publish(self, topic, payload=b"", qos=1, retain=False):
        self.published.clear()
        self.client.publish(topic, payload, qos, retain)

    def receive_commands(self):
        """Subscribes to what is sent to the device."""
        self.client.subscribe(f"devices/{self.device.id}/messages/devicebound/#", 1)
        assert self.subscribed.wait(WAIT_SECONDS_MAX)

    def next(self):
        """The next message to the device, as its topic tells it."""
        message = self.messages.get(timeout=WAIT_SECONDS_MAX)
        *path, bag = message.topic.split("/", 4)
        assert path == ["devices", self.device.id, "messages", "devicebound"]
        pairs = [pair.split("=") for pair in bag.split("&")]
        properties = {urllib.parse.unquote(k): urllib.parse.unquote(v) for k, v in pairs}
        return {
            "body": message.payload,
            "messageId": properties.pop("$.mid", None),
            "correlationId": properties.pop("$.cid", None),
            "userId": properties.pop("$.uid", None),
            "to": properties.pop("$.to", None),
            "contentType": properties.pop("$.ct", None),
            "contentEncoding": properties.pop("$.ce", None),
            "expiryTimeUtc": millis(properties.pop("$.exp")),
            "ack": properties.pop("iothub-ack", None),
            "properties": properties,
        }

    def is_refused(self):
        """Whether the hub ended the connection without acknowledging."""
        gone = self.gone.wait(WAIT_SECONDS_MAX)
        return gone and not self.published.is_set()

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def _paho_receiver(hub, device):
    # The longest keep-alive, so that moving the clock is not taken for silence.
    paho = Paho(hub, device, keepalive=1740)
    paho.receive_commands()
    return paho


SENDERS = {
    "python-amqp": lambda hub: PythonSender(hub, TransportType.Amqp),
    "python-amqp-ws": lambda hub: PythonSender(hub, TransportType.AmqpOverWebsocket),
    "node-amqp": lambda hub: NodeSender(hub, "amqp"),
    "node-amqp-ws": lambda hub: NodeSender(hub, "amqp-ws"),
}
#: The SDKs for devices.
RECEIVERS = {
    "python-mqtt": lambda hub, device: PythonReceiver(hub, device, False),
    "python-mqtt-ws": lambda hub, device: PythonReceiver(hub, device, True),
    "node-mqtt": lambda hub, device: NodeReceiver(hub, device, "mqtt"),
    "node-mqtt-ws": lambda hub, device: NodeReceiver(hub, device, "mqtt-ws"),
    "node-http": NodePoller,
}
#: Devices without an SDK, for what the SDKs do not show.
RAW_RECEIVERS = {"paho": _paho_receiver, "https": RawPoller}
