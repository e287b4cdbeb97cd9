"""Requests with a token, by a device or a service, that live through all kill rounds."""

import base64
import hashlib
import hmac
import sys
import threading
import time
import urllib.parse

import requests

API = "api-version=2021-04-12"


class Rest:
    """The hub of a connection string."""

    def __init__(self, string, ca):
        parts = dict(part.split("=", 1) for part in string.split(";"))
        self.host, self.device = parts["HostName"], parts.get("DeviceId")
        policy = parts.get("SharedAccessKeyName")
        resource = self.host if self.device is None else f"{self.host}/devices/{self.device}"
        resource = urllib.parse.quote(resource, safe="")
        expiry = int(time.time()) + 7 * 24 * 3600
        signed = f"{resource}\n{expiry}".encode()
        digest = hmac.new(base64.b64decode(parts["SharedAccessKey"]), signed, hashlib.sha256).digest()
        signature = urllib.parse.quote(base64.b64encode(digest), safe="")
        token = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"
        self.session = requests.Session()
        # Else the environment's certificates would count instead of these.
        self.session.trust_env = False
        self.session.verify = ca
        self.session.headers["Authorization"] = token + (f"&skn={policy}" if policy else "")

    def call(self, method, path):
        """The answer; `requests.RequestException` while the hub is away."""
        try:
            return self.session.request(method, f"https://{self.host}{path}", timeout=10)
        except requests.RequestException:
            self.session.close()
            raise


def until_input_ends(act, pause):
    """Acts again at once when `act` says so, else after `pause` seconds, until standard input closes."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        try:
            if act():
                continue
        except requests.RequestException:
            # The hub is away.
            pass
        ended.wait(pause)
