"""Telemetry over HTTPS while the hub is killed: what was answered is there afterwards."""

import http.client
import ssl
import threading

import service
from conftest import trusted
from reading import body_of, consumer, read_until

THREADS = 4
ROUNDS = 3
#: Answers in a round, in all, after which the hub is killed, while requests are on their way.
ANSWERS = 200
WAIT_SECONDS_MAX = 30


class Sender(threading.Thread):
    """Posts numbered messages over one kept connection until the hub is gone."""

    def __init__(self, hub, device, name, answered, enough):
        super().__init__(daemon=True)
        self.hub, self.device, self.name_of = hub, device, name
        self.answered, self.enough = answered, enough
        self.sent = 0

    def run(self):
        context = ssl.create_default_context(cafile=str(self.hub.ca))
        resource = f"{self.hub.address}/devices/{self.device.id}"
        headers = {"Authorization": service.token(resource, self.device.key)}
        connection = http.client.HTTPSConnection(self.hub.address, 443, timeout=20, context=context)
        path = f"/devices/{self.device.id}/messages/events?api-version=2021-04-12"
        try:
            while True:
                body = f"{self.name_of}-{self.sent}"
                self.sent += 1
                connection.request("POST", path, body=body, headers=headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 204, answer.status
                self.answered.append(body)
                if len(self.answered) >= ANSWERS:
                    self.enough.set()
        except (OSError, http.client.HTTPException):
            # The hub was killed.
            return


def texts(events):
    return {body_of(event).decode() for _, event in events}


def test_what_was_answered_outlives_a_kill(own_hub):
    device = own_hub.create_device("https-1")
    answered = []
    sent = 0
    for number in range(ROUNDS):
        of_round, enough = [], threading.Event()
        senders = [
            Sender(own_hub, device, f"{number}-{thread}", of_round, enough)
            for thread in range(THREADS)
        ]
        for sender in senders:
            sender.start()
        assert enough.wait(WAIT_SECONDS_MAX)
        own_hub.kill()
        for sender in senders:
            sender.join(WAIT_SECONDS_MAX)
            assert not sender.is_alive()
        answered += of_round
        sent += sum(sender.sent for sender in senders)
        own_hub.start()
    assert len(answered) >= ROUNDS * ANSWERS
    with trusted(own_hub):
        client = consumer(own_hub)
        # What was on its way when the hub was killed may be there as well. Fails when one is missing.
        events = read_until(client, lambda events: texts(events) >= set(answered))
    stored = [body_of(event).decode() for _, event in events]
    # No client here sends anything twice.
    assert len(stored) == len(set(stored)) and len(stored) <= sent
