"""The back end's side: raw AMQP by qpid-proton and raw HTTPS, for what the Python service SDK hides."""

import base64
import hashlib
import hmac
import json
import time
import urllib.parse
import uuid
from contextlib import contextmanager

import proton
import proton.utils
import requests

API_VERSION = "2021-04-12"
FEEDBACK = "/messages/serviceBound/feedback"

#: The hub sends feedback when 64 records wait, or so long after it last did.
FEEDBACK_PAUSE_SECONDS = 15


def token(resource, key, *, policy=None, raw_key=False, life=3600):
    """A shared access signature; `raw_key` for the rule of Event Hubs clients."""
    expiry = int(time.time()) + life
    encoded = urllib.parse.quote(resource, safe="")
    secret = key.encode() if raw_key else base64.b64decode(key)
    digest = hmac.new(secret, f"{encoded}\n{expiry}".encode(), hashlib.sha256).digest()
    signature = urllib.parse.quote(base64.b64encode(digest), safe="")
    text = f"SharedAccessSignature sr={encoded}&sig={signature}&se={expiry}"
    return text + (f"&skn={policy}" if policy else "")


def service_token(hub, *, policy="service", life=24 * 3600):
    """A token of a policy, good for a day: longer than any test moves the clock."""
    string = dict(part.split("=", 1) for part in hub.service_string(policy).split(";"))
    return token(hub.address, string["SharedAccessKey"], policy=policy, life=life)


def device_token(hub, device):
    return token(f"{hub.address}/devices/{device.id}", device.key, life=24 * 3600)


@contextmanager
def amqp(hub, *, policy="service"):
    """A connection to the service endpoint, authenticated by SASL PLAIN."""
    domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
    domain.set_trusted_ca_db(str(hub.ca))
    domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER)
    connection = proton.utils.BlockingConnection(
        f"amqps://{hub.address}:5671",
        timeout=30,
        ssl_domain=domain,
        allowed_mechs="PLAIN",
        user=f"{policy}@sas.root.hub",
        password=service_token(hub, policy=policy),
    )
    try:
        yield connection
    finally:
        connection.close()


def send(hub, device_id, body=b"", *, to=None, properties=None, **system):
    """Sends one message as raw AMQP and returns when it is accepted; raises Refused if it is not."""
    message = proton.Message(
        body=body,
        inferred=True,
        address=to or f"/devices/{device_id}/messages/devicebound",
        properties=properties or {},
        **system,
    )
    with amqp(hub) as connection:
        send_on(connection, message)


def send_on(connection, message):
    """Sends one message on a connection; raises Refused with the condition when it is refused."""
    sender = connection.create_sender("/messages/devicebound")
    delivery = sender.link.send(message)
    connection.wait(lambda: delivery.settled, msg="a message was not settled")
    state = delivery.remote_state
    condition = delivery.remote.condition
    delivery.settle()
    sender.close()
    if state != proton.Delivery.ACCEPTED:
        raise Refused(condition.name if condition else str(state), condition and condition.description)


class Refused(Exception):
    """The hub refused a message."""

    def __init__(self, condition, description):
        super().__init__(f"{condition}: {description}")
        self.condition, self.description = condition, description or ""


class Feedback:
    """Receives feedback for one test, over AMQP, and completes it."""

    def __init__(self, hub):
        self.hub = hub
        self.records = []

    def take(self):
        """Takes what there is at present, over REST, and completes it."""
        while True:
            answer = https(self.hub, "GET", FEEDBACK)
            if answer.status_code == 204:
                return
            assert answer.status_code == 200, answer.text
            assert answer.headers["Content-Type"] == "application/vnd.microsoft.iothub.feedback.json"
            batch = answer.json()
            assert 1 <= len(batch) <= 64
            self.records += batch
            lock = answer.headers["ETag"].strip('"')
            assert https(self.hub, "DELETE", f"{FEEDBACK}/{lock}").status_code == 204

    def of(self, message_id, patience=30):
        """The one record of a message, waited for; the clock is moved past the hub's pause."""
        deadline = time.monotonic() + patience
        while True:
            found = [r for r in self.records if r.get("originalMessageId") == message_id]
            if found:
                (record,) = found
                return record
            assert time.monotonic() < deadline, (message_id, self.records, self.hub.log()[-2000:])
            self.hub.advance(FEEDBACK_PAUSE_SECONDS / 3)
            self.take()


def https(hub, method, path, *, authorization=None, query="", headers=None, **options):
    """One request, as a service unless another authorization is given."""
    return requests.request(
        method,
        f"https://{hub.address}{path}?api-version={API_VERSION}{query}",
        headers={"Authorization": authorization or service_token(hub, policy="iothubowner")}
        | (headers or {}),
        verify=str(hub.ca),
        timeout=30,
        **options,
    )


class HttpsDevice:
    """A device that polls, as the documentation of the HTTPS interface has it."""

    def __init__(self, hub, device):
        self.hub, self.device = hub, device
        self.authorization = device_token(hub, device)
        self.path = f"/devices/{device.id}/messages/devicebound"

    def _ask(self, method, path, **options):
        return https(self.hub, method, path, authorization=self.authorization, **options)

    def receive(self, **options):
        """The next message as the response, or None."""
        answer = self._ask("GET", self.path, **options)
        if answer.status_code == 204:
            return None
        assert answer.status_code == 200, answer.text
        etag = answer.headers["ETag"]
        assert etag == f'"{uuid.UUID(etag.strip(chr(34)))}"', etag
        answer.lock = etag.strip('"')
        return answer

    def complete(self, message):
        return self._ask("DELETE", f"{self.path}/{message.lock}").status_code

    def reject(self, message, query="&reject"):
        return self._ask("DELETE", f"{self.path}/{message.lock}", query=query).status_code

    def abandon(self, message):
        return self._ask("POST", f"{self.path}/{message.lock}/abandon").status_code


def message_count(hub, device):
    """cloudToDeviceMessageCount as the registry shows it."""
    answer = https(hub, "GET", f"/devices/{device.id}")
    assert answer.status_code == 200, answer.text
    return answer.json()["cloudToDeviceMessageCount"]


def change_settings(hub, folder, **cloud_to_device):
    """Changes settings of the running hub by `hub show` and `hub apply`."""
    settings = json.loads(hub.run("hub", "show", "--output", "json"))
    settings["properties"]["cloudToDevice"] |= cloud_to_device
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    hub.run("hub", "apply", str(path))
