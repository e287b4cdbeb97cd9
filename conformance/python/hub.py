"""Starts, stops and asks a hub through its command line, as a user would."""

import datetime
import http.client
import itertools
import json
import os
import select
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("FIELDPOST_BIN", ROOT / "target/release/fieldpost"))

#: The device and service SDKs have their ports compiled in, so every hub needs an address of its
#: own. The process id keeps runs apart, the counter keeps the hubs of a run apart.
_addresses = (
    f"127.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}.{n}" for n in itertools.count(1)
)

START_SECONDS_MAX = 30


@dataclass(frozen=True)
class Device:
    """A registered device."""

    id: str
    connection_string: str

    @property
    def key(self):
        """The primary key, base64 text."""
        return self.connection_string.split("SharedAccessKey=", 1)[1].split(";")[0]


class Hub:
    """A hub process on an address of its own."""

    def __init__(self, folder, *, test_mode=True, settings=()):
        self.folder = Path(folder)
        self.data = self.folder / "data"
        self.address = next(_addresses)
        self.test_mode = test_mode
        self.settings = list(settings)
        self.process = None
        self.log_path = self.folder / "hub.log"
        self.ca = self.data / "ca.pem"

    def start(self):
        """Starts the hub and returns when it is ready."""
        command = [BINARY, "serve", "--data", self.data, "--host-name", self.address]
        if self.test_mode:
            command.append("--test-mode")
        for listener in ("mqtts", "amqps", "https", "amqp", "admin"):
            command += ["--set", f"listeners.{listener}.address={self.address}"]
        for setting in self.settings:
            command += ["--set", setting]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait_until_ready()

    def _wait_until_ready(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        endpoints = self.data / "endpoints.json"
        exited = os.pidfd_open(self.process.pid)
        try:
            while True:
                # endpoints.json of an earlier process is deleted before anything else happens, so
                # its process id tells whose it is; the health check tells that it is up.
                if endpoints.exists() and self._is_ready():
                    return
                # Waits for the process to end, for a moment at most: not a sleep but a poll.
                ended, _, _ = select.select([exited], [], [], 0.02)
                if ended or time.monotonic() > deadline:
                    raise RuntimeError(f"the hub did not start:\n{self.log()}")
        finally:
            os.close(exited)

    def _is_ready(self):
        try:
            connection = http.client.HTTPConnection(self.address, 9640, timeout=5)
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def stop(self):
        """Stops the hub as an operator would; the exit code must be 0."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"the hub did not stop in time:\n{self.log()}") from None
        finally:
            self.process = None
        assert code == 0, f"the hub ended with {code}:\n{self.log()}"
        assert not (self.data / "endpoints.json").exists()

    def kill(self):
        """Ends the hub as a power cut of the process would."""
        self.process.kill()
        self.process.wait()
        self.process = None

    def log(self):
        """What the hub has logged so far."""
        return self.log_path.read_text(errors="replace")

    def run(self, *arguments, check=True):
        """Runs a command of the binary against this hub and returns its standard output."""
        done = subprocess.run(
            [BINARY, arguments[0], *arguments[1:], "--data", self.data],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{arguments} failed: {done.stderr}\n{self.log()}")
        return done.stdout

    def create_device(self, device_id):
        """Registers a device and returns it with its connection string."""
        self.run("device", "create", device_id)
        return Device(device_id, self.run("connection-string", "--device", device_id).strip())

    def service_string(self, policy="iothubowner"):
        """The connection string for service SDKs."""
        return self.run("connection-string", "--policy", policy).strip()

    def event_hub_string(self, policy="service"):
        """The connection string for Event Hubs SDKs."""
        return self.run("connection-string", "--event-hub", "--policy", policy).strip()

    def admin(self, method, path, body=None):
        """Calls the admin API and returns the decoded answer."""
        token = (self.data / "admin-token").read_text().strip()
        connection = http.client.HTTPConnection(self.address, 9640, timeout=30)
        connection.request(
            method,
            path,
            body=None if body is None else json.dumps(body),
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
                "Host": "localhost",
            },
        )
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, (answer.status, text)
        return json.loads(text) if text else None

    def metrics(self):
        """The metrics in Prometheus's text form."""
        connection = http.client.HTTPConnection(self.address, 9640, timeout=30)
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()

    def advance(self, seconds):
        """Moves the hub's clock, so that no test waits for a time-out; returns its time in ms."""
        answer = self.admin("POST", "/api/test/clock", {"advanceSeconds": seconds})
        return millis(answer["now"])

    def now(self):
        """The time of the hub's clock, in ms since 1970."""
        return self.advance(0)


def millis(text):
    """A time of ISO 8601 as ms since 1970."""
    time = datetime.datetime.fromisoformat(text)
    assert time.utcoffset() == datetime.timedelta(0), text
    return round(time.timestamp() * 1000)
