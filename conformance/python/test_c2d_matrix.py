"""Every sender with every receiver: Python and Node.js, over each of their transports."""

import base64
import json
import os
import queue
import random
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from azure.iot.device import IoTHubDeviceClient
from azure.iot.hub import IoTHubRegistryManager
from uamqp import TransportType

from service import FEEDBACK_PAUSE_SECONDS

NODE = Path(__file__).resolve().parents[1] / "node"
WAIT_SECONDS_MAX = 30


class Script:
    """A role of conformance/node/c2d.js: lines of JSON in and out."""

    def __init__(self, hub, *arguments, **environment):
        self.process = subprocess.Popen(
            ["node", "c2d.js", *arguments],
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


class PythonSender:
    def __init__(self, hub, transport):
        self.back = IoTHubRegistryManager.from_connection_string(hub.service_string(), transport)

    def send(self, device_id, body, properties, system):
        self.back.send_c2d_message(device_id, body, properties | system)

    def close(self):
        self.back.amqp_svc_client.disconnect_sync()


class NodeSender:
    def __init__(self, hub, transport):
        self.script = Script(hub, "send", transport, SERVICE_STRING=hub.service_string())

    def send(self, device_id, body, properties, system):
        self.script.say(
            {
                "deviceId": device_id,
                "body": base64.b64encode(body).decode(),
                "properties": {k: v for k, v in properties.items() if k != "iothub-ack"},
                "ack": properties.get("iothub-ack"),
            }
            | system
        )
        assert self.script.next() == {"sent": True}

    def close(self):
        self.script.close()


class PythonReceiver:
    def __init__(self, hub, device, websocket):
        self.client = IoTHubDeviceClient.create_from_connection_string(
            device.connection_string,
            server_verification_cert=hub.ca.read_text(),
            websockets=websocket,
            keep_alive=1740,
        )
        self.messages = queue.Queue()
        self.client.connect()
        self.client.on_message_received = self.messages.put

    def next(self):
        message = self.messages.get(timeout=WAIT_SECONDS_MAX)
        return {
            "body": message.data,
            "messageId": message.message_id,
            "correlationId": message.correlation_id,
            "contentType": message.content_type,
            "contentEncoding": message.content_encoding,
            "properties": dict(message.custom_properties),
        }

    def close(self):
        self.client.shutdown()


class NodeReceiver:
    def __init__(self, hub, device, transport):
        self.transport = transport
        self.script = Script(hub, "receive", transport, DEVICE_STRING=device.connection_string)

    def next(self):
        message = self.script.next()
        properties = message["properties"]
        # The SDK leaves the acknowledgement among the application properties, and over HTTPS the
        # prefix on their names.
        properties.pop("iothub-ack", None)
        if self.transport == "http":
            prefix = "iothub-app-"
            properties = {k.removeprefix(prefix): v for k, v in properties.items() if k.startswith(prefix)}
        return {
            name: message.get(name)
            for name in ("messageId", "correlationId", "contentType", "contentEncoding")
        } | {"body": base64.b64decode(message["body"]), "properties": properties}

    def close(self):
        self.script.close()


SENDERS = {
    "python-amqp": lambda hub: PythonSender(hub, TransportType.Amqp),
    "python-amqp-ws": lambda hub: PythonSender(hub, TransportType.AmqpOverWebsocket),
    "node-amqp": lambda hub: NodeSender(hub, "amqp"),
    "node-amqp-ws": lambda hub: NodeSender(hub, "amqp-ws"),
}
RECEIVERS = {
    "python-mqtt": lambda hub, device: PythonReceiver(hub, device, False),
    "python-mqtt-ws": lambda hub, device: PythonReceiver(hub, device, True),
    "node-mqtt": lambda hub, device: NodeReceiver(hub, device, "mqtt"),
    "node-mqtt-ws": lambda hub, device: NodeReceiver(hub, device, "mqtt-ws"),
    "node-http": lambda hub, device: NodeReceiver(hub, device, "http"),
}


@pytest.fixture
def hub(hub_of_module):
    return hub_of_module


@pytest.fixture
def senders(hub):
    # For one test: the Python SDK is silent between messages, and moving the clock makes that long.
    opened = {name: make(hub) for name, make in SENDERS.items()}
    yield opened
    for sender in opened.values():
        sender.close()


@pytest.mark.parametrize("receiver_name", RECEIVERS)
def test_everything_intact_from_every_sender(hub, senders, receiver_name):
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
    over = "amqp-ws" if receiver_name.endswith("-ws") else "amqp"
    feedback = Script(hub, "feedback", over, SERVICE_STRING=hub.service_string())
    receiver = RECEIVERS[receiver_name](hub, device)
    chance = random.Random(receiver_name)
    sent = []
    for sender_name, sender in senders.items():
        for number in range(4):
            message_id = f"{sender_name}-{receiver_name}-{number}-{uuid.uuid4()}"
            body = chance.randbytes(chance.choice([0, 1, 300, 20_000]))
            values = ["a b", "a+b", "50%", "x=y&z", "1"]
            if receiver_name != "node-http":
                # Over HTTPS names are header names, and values hold printable ASCII.
                values += ["\u017elu\u0165ou\u010dk\u00fd k\u016f\u0148", "\U0001f4ee", "a/b?c#d", "%20"]
            properties = {f"name-{n}": chance.choice(values) for n in range(5)}
            if receiver_name == "node-http":
                # Over HTTPS this SDK makes text of every body.
                body = body.hex().encode()
            system = {
                "messageId": message_id,
                "correlationId": f"c-{number}",
                "contentType": "application/octet-stream",
                "contentEncoding": "utf-8",
            }
            sender.send(device.id, body, properties | {"iothub-ack": "full"}, system)
            expected = {"body": body, "properties": properties} | system
            if receiver_name == "node-http":
                # This SDK does not read these two headers.
                expected |= {"contentType": None, "contentEncoding": None}
            assert receiver.next() == expected, sender_name
            sent.append(message_id)
    receiver.close()

    outcomes = {}
    while len(outcomes) < len(sent):
        hub.advance(FEEDBACK_PAUSE_SECONDS)
        try:
            record = feedback.next(timeout=5)
        except queue.Empty:
            continue
        assert "error" not in record, record
        if record.get("originalMessageId") in sent:
            outcomes[record["originalMessageId"]] = record
    feedback.close()
    assert {record["statusCode"] for record in outcomes.values()} == {"Success"}
    assert {record["deviceId"] for record in outcomes.values()} == {device.id}


def test_refusals_reach_the_node_sdk_by_their_names(hub, senders):
    script = senders["node-amqp"].script

    def fate(device_id, body=b"x"):
        script.say({"deviceId": device_id, "body": base64.b64encode(body).decode()})
        return script.next()

    assert fate("nobody-of-this-name") == {"sent": False, "error": "DeviceNotFoundError"}
    device = hub.create_device(f"dev-{uuid.uuid4().hex[:12]}")
    assert fate(device.id, bytes(66_000)) == {"sent": False, "error": "MessageTooLargeError"}
    for _ in range(50):
        assert fate(device.id) == {"sent": True}
    assert fate(device.id) == {"sent": False, "error": "DeviceMaximumQueueDepthExceededError"}
