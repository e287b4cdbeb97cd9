"""Devices over AMQP by qpid-proton: a thousand on one connection, each with its own session and links."""

import json

import proton
import proton.handlers
import proton.reactor

import service

DEVICES = 1000
#: A message waits for each of these.
WITH_MESSAGE = (0, 1, 500, 999)


class Fleet(proton.handlers.MessagingHandler):
    """Signs in with a policy's token, and for each device sends one message and takes what waits for it."""

    def __init__(self, hub, ids):
        super().__init__(prefetch=0, auto_accept=False)
        self.hub, self.ids = hub, ids
        self.accepted, self.sent, self.received, self.failed = set(), set(), {}, None

    def on_start(self, event):
        domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
        domain.set_trusted_ca_db(str(self.hub.ca))
        domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER)
        self.connection = event.container.connect(
            f"amqps://{self.hub.address}:5671",
            ssl_domain=domain,
            allowed_mechs="PLAIN",
            user="device@sas.root.hub",
            password=service.service_token(self.hub, policy="device"),
            reconnect=False,
        )
        for number, device in enumerate(self.ids):
            session = self.connection.session()
            session.open()
            # The same names in each session, as the .NET library has them.
            sender = session.sender("TelemetrySenderLink")
            sender.target.address = f"/devices/{device}/messages/events"
            sender.open()
            if number in WITH_MESSAGE:
                receiver = session.receiver("DeviceBoundReceiverLink")
                receiver.source.address = f"/devices/{device}/messages/deviceBound"
                receiver.open()
                receiver.flow(10)

    def on_sendable(self, event):
        device = event.link.remote_target.address.split("/")[2]
        if device not in self.sent:
            self.sent.add(device)
            event.link.send(proton.Message(body=device.encode(), inferred=True))

    def on_accepted(self, event):
        self.accepted.add(event.link.remote_target.address.split("/")[2])
        self.end_if_done()

    def on_message(self, event):
        device = event.link.remote_source.address.split("/")[2]
        # A view of memory that is used again.
        self.received[device] = bytes(event.message.body)
        self.accept(event.delivery)
        self.end_if_done()

    def end_if_done(self):
        if len(self.accepted) == len(self.ids) and len(self.received) == len(WITH_MESSAGE):
            self.connection.close()

    def on_link_error(self, event):
        self.failed = event.link.remote_condition
        self.connection.close()


def test_a_thousand_devices_share_one_connection(own_hub, tmp_path):
    ids = [f"fleet-{number}" for number in range(DEVICES)]
    devices = tmp_path / "devices.ndjson"
    devices.write_text("".join(json.dumps({"id": id, "importMode": "create"}) + "\n" for id in ids))
    own_hub.run("device", "import", str(devices))
    for number in WITH_MESSAGE:
        service.send(own_hub, ids[number], f"for {number}".encode())
    fleet = Fleet(own_hub, ids)
    proton.reactor.Container(fleet).run()
    assert fleet.failed is None
    assert len(fleet.accepted) == DEVICES
    assert fleet.received == {ids[number]: f"for {number}".encode() for number in WITH_MESSAGE}
    for number in WITH_MESSAGE:
        waiting = own_hub.admin("GET", f"/api/c2d/devices/{ids[number]}/messages")
        assert waiting["messages"] == []
