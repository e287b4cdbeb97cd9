"""What test_credentials.py tries credentials with: certificates, and clients that only sign in."""

import socket
import ssl
import struct
import subprocess
from dataclasses import dataclass

import proton
import proton.handlers
import proton.reactor

WAIT_SECONDS_MAX = 30


@dataclass(frozen=True)
class Credential:
    """A token, a certificate with its key, both, or neither."""

    token: str | None = None
    #: Certificate and key, as file names.
    certificate: tuple[str, str] | None = None
    #: The policy that a login by SASL PLAIN names beside the token.
    login: str = "iothubowner"


class Certificates:
    """Keys and certificates made by openssl."""

    #: `openssl x509` cannot make a certificate that has ended. `openssl ca` can, and wants this.
    SETTINGS = """
[ca]
default_ca = authority
[authority]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
default_days = 30
unique_subject = no
policy = policy
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
"""

    def __init__(self, folder):
        self.folder = folder
        self._made = 0
        (folder / "ca.cnf").write_text(self.SETTINGS)
        (folder / "index.txt").touch()

    def _openssl(self, *arguments):
        subprocess.run(
            ["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=30
        )

    def _files(self):
        """A new key, and the name of the certificate that is to be made for it."""
        self._made += 1
        key, certificate = f"{self._made}.key", f"{self._made}.pem"
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        return str(self.folder / certificate), str(self.folder / key)

    def self_signed(self, name):
        certificate, key = self._files()
        subject = f"/CN={name}"
        self._openssl(
            "req", "-new", "-x509", "-key", key, "-subj", subject, "-days", "30",
            "-out", certificate,
        )
        return certificate, key

    def signed(self, authority, name, *, ended=False):
        certificate, key = self._files()
        request = certificate + ".request"
        self._openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        dates = ["-startdate", "20200101000000Z", "-enddate", "20210101000000Z"] if ended else []
        self._openssl(
            "ca", "-batch", "-notext", "-config", "ca.cnf", "-in", request, "-out", certificate,
            "-cert", authority[0], "-keyfile", authority[1], *dates,
        )
        return certificate, key

    @staticmethod
    def der(certificate):
        with open(certificate[0]) as file:
            return ssl.PEM_cert_to_DER_cert(file.read())


def tls_context(hub, credential):
    """TLS as the credential has it begin."""
    context = ssl.create_default_context(cafile=str(hub.ca))
    if credential.certificate:
        context.load_cert_chain(*credential.certificate)
    return context


def tls(hub, context, port):
    connection = socket.create_connection((hub.address, port), timeout=WAIT_SECONDS_MAX)
    return context.wrap_socket(connection, server_hostname=hub.address)


def read_exactly(connection, length):
    """So many bytes; fewer when the hub closes before that."""
    got = b""
    while len(got) < length:
        try:
            piece = connection.recv(length - len(got))
        except TimeoutError:
            raise
        except OSError:
            return got
        if not piece:
            return got
        got += piece
    return got


class Mqtt:
    """An MQTT connection up to CONNACK, and publishes on it."""

    def __init__(self, hub, context, device, token):
        def text(value):
            return struct.pack(">H", len(value.encode())) + value.encode()

        user = f"{hub.address}/{device}/?api-version=2021-04-12"
        flags = 0x82 if token is None else 0xC2
        hello = text("MQTT") + bytes([4, flags]) + struct.pack(">H", 1200)
        hello += text(device) + text(user)
        if token is not None:
            hello += text(token)
        self.connection = tls(hub, context, 8883)
        self.connection.sendall(self._packet(0x10, hello))
        answer = read_exactly(self.connection, 4)
        #: Of CONNACK, or what came instead.
        self.code = answer[3] if answer[:2] == b"\x20\x02" and len(answer) == 4 else answer

    @staticmethod
    def _packet(first, rest):
        length, header = len(rest), bytes([first])
        while True:
            length, digit = divmod(length, 128)
            header += bytes([digit | (0x80 if length else 0)])
            if not length:
                return header + rest

    def publish(self, device, body):
        """Sends telemetry at QoS 1: True with its PUBACK, False when the connection ends."""
        topic = f"devices/{device}/messages/events/".encode()
        rest = struct.pack(">H", len(topic)) + topic + b"\0\1" + body.encode()
        self.connection.sendall(self._packet(0x32, rest))
        answer = read_exactly(self.connection, 4)
        assert answer in (b"", b"\x40\x02\0\1"), answer
        return bool(answer)

    def close(self):
        self.connection.close()


def plain_code(hub, context, user, password):
    """The outcome of a login by SASL PLAIN: 0 when it is let in, 1 for a credential that is not."""
    response = b"\0" + user.encode() + b"\0" + password.encode()
    fields = b"\xa3\x05PLAIN" + b"\xb0" + struct.pack(">I", len(response)) + response
    init = b"\0\x53\x41\xd0" + struct.pack(">II", len(fields) + 4, 2) + fields
    connection = tls(hub, context, 5671)
    connection.sendall(b"AMQP\3\1\0\0" + struct.pack(">IHH", len(init) + 8, 0x0201, 0) + init)
    assert read_exactly(connection, 8) == b"AMQP\3\1\0\0"
    while True:
        (length,) = struct.unpack(">I", read_exactly(connection, 4))
        frame = read_exactly(connection, length - 4)[4:]
        if frame.startswith(b"\0\x53\x44"):
            connection.close()
            # A list whose first field is a ubyte.
            return frame[frame.index(b"\x50") + 1]


@dataclass
class Visit:
    """One AMQP connection: how it signs in, and what it tries then.

    `login` is a user and a password for SASL PLAIN; `put` is a token for `$cbs`. Links are tried as
    (cell, "sender" or "receiver", address), questions as (cell, token that the question carries).
    """

    certificate: tuple[str, str] | None = None
    login: tuple[str, str] | None = None
    put: tuple[object, str] | None = None
    links: tuple = ()
    questions: tuple = ()


class Visits(proton.handlers.MessagingHandler):
    """Makes visits at once: a refusal is kept back for a second, which passes for all together."""

    def __init__(self, hub, visits):
        super().__init__(prefetch=0, auto_accept=True)
        self.hub, self.visits = hub, list(visits)
        self.answers = {}
        #: By the names of links.
        self.cells, self.requests, self.asked = {}, {}, set()
        self.left = [0] * len(self.visits)
        self.connections = []

    def run(self):
        """The answer in each cell: "open", a status, or the condition of a refusal."""
        if self.visits:
            proton.reactor.Container(self).run()
        return self.answers

    def on_start(self, event):
        self.container = event.container
        self.deadline = event.container.schedule(WAIT_SECONDS_MAX, self)
        for number, visit in enumerate(self.visits):
            domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
            domain.set_trusted_ca_db(str(self.hub.ca))
            domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER)
            if visit.certificate:
                domain.set_credentials(*visit.certificate, None)
            options = {"allowed_mechs": "EXTERNAL" if visit.certificate else "ANONYMOUS"}
            if visit.login:
                user, password = visit.login
                options = {"allowed_mechs": "PLAIN", "user": user, "password": password}
            connection = event.container.connect(
                f"amqps://{self.hub.address}:5671", ssl_domain=domain, reconnect=False, **options
            )
            self.connections.append(connection)
            self.left[number] = bool(visit.put) + len(visit.links) + len(visit.questions)
            if visit.put:
                cell, token = visit.put
                self._ask(number, "$cbs", [(cell, token, {
                    "operation": "put-token",
                    "type": "azure-devices.net:sastoken",
                    "name": self.hub.address,
                })])
            else:
                self._go_on(number)

    def _go_on(self, number):
        """What comes once the visitor has signed in."""
        visit = self.visits[number]
        for cell, role, address in visit.links:
            name = f"{number}/{len(self.cells)}"
            self.cells[name] = cell
            create = getattr(self.container, f"create_{role}")
            create(self.connections[number], address, name=name)
        asked = {"operation": "READ", "type": "com.microsoft:eventhub", "name": "hub"}
        questions = [
            (cell, "", asked | ({} if token is None else {"security_token": token}))
            for cell, token in visit.questions
        ]
        if questions:
            self._ask(number, "$management", questions)
        if self.left[number] == 0:
            self._close(number)

    def _ask(self, number, node, requests):
        link = self.container.create_receiver(
            self.connections[number], node, target=node + "-in", name=f"{number}/{node}-in"
        )
        link.flow(len(requests))
        name = f"{number}/{node}-out"
        self.requests[name] = [
            proton.Message(id=at, reply_to=node + "-in", body=body, properties=properties)
            for at, (_, body, properties) in enumerate(requests)
        ]
        self.cells[link.name] = [cell for cell, *_ in requests]
        self.container.create_sender(self.connections[number], node, name=name)

    def on_sendable(self, event):
        name = event.link.name
        if name in self.requests and name not in self.asked:
            self.asked.add(name)
            for message in self.requests[name]:
                event.link.send(message)

    def on_message(self, event):
        name, message = event.link.name, event.message
        properties = message.properties
        status = properties.get("status-code", properties.get("statusCode"))
        cell, number = self.cells[name][message.correlation_id], int(name.split("/")[0])
        if name.endswith("/$cbs-in"):
            # The token may be put on several connections; all must be told the same.
            if self.answers.setdefault(cell, int(status)) != int(status):
                self.answers[cell] = "now this, now that"
            self.left[number] -= 1
            self._go_on(number)
        else:
            self._answer(name, cell, int(status))

    def on_link_opened(self, event):
        cell = self.cells.get(event.link.name)
        end = event.link.remote_target if event.link.is_sender else event.link.remote_source
        # A link that is refused has no terminus at the hub's end; its error follows.
        if cell and not isinstance(cell, list) and end.address is not None:
            self._answer(event.link.name, cell, "open")

    def on_link_error(self, event):
        cell = self.cells.get(event.link.name)
        if cell and not isinstance(cell, list):
            self._answer(event.link.name, cell, event.link.remote_condition.name)

    def _answer(self, name, cell, answer):
        if cell in self.answers:
            # A link that was open for a moment was open; that it did not stay is an answer as well.
            self.answers[cell] = f"{self.answers[cell]}, then {answer}"
            return
        self.answers[cell] = answer
        number = int(name.split("/")[0])
        self.left[number] -= 1
        if self.left[number] == 0:
            self._close(number)

    def _close(self, number):
        self.connections[number].close()

    def on_connection_closed(self, event):
        if all(left == 0 for left in self.left):
            self.deadline.cancel()

    def on_transport_error(self, event):
        # What was to be tried on this connection has no answer; the others go on.
        self.left[self.connections.index(event.connection)] = 0
        self.on_connection_closed(event)

    def on_timer_task(self, event):
        # What has no answer by now is missing among the answers.
        self.container.stop()
