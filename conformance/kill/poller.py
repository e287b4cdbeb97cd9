"""A device that polls over HTTPS and lives through all kill rounds.

Reads connection string and CA file from its arguments; prints `got N` for each message before it
completes it, and `completed N` when the hub has confirmed that. Ends when its standard input closes.
"""

import base64
import hashlib
import hmac
import sys
import threading
import time
import urllib.parse

import requests

string, ca = sys.argv[1:]
parts = dict(part.split("=", 1) for part in string.split(";"))
host, device, key = parts["HostName"], parts["DeviceId"], parts["SharedAccessKey"]
resource = urllib.parse.quote(f"{host}/devices/{device}", safe="")
expiry = int(time.time()) + 7 * 24 * 3600
digest = hmac.new(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
signature = urllib.parse.quote(base64.b64encode(digest), safe="")

session = requests.Session()
# Else the environment's certificates would count instead of these.
session.trust_env = False
session.verify = ca
session.headers["Authorization"] = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"
base = f"https://{host}/devices/{device}/messages/devicebound"

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()


def poll():
    """Takes one message; whether there was one."""
    got = session.get(f"{base}?api-version=2021-04-12", timeout=10)
    if got.status_code != 200:
        return False
    number = got.content.decode()
    print(f"got {number}", flush=True)
    lock = got.headers["ETag"].strip('"')
    done = session.delete(f"{base}/{lock}?api-version=2021-04-12", timeout=10)
    if done.status_code == 204:
        print(f"completed {number}", flush=True)
    return True


while not ended.is_set():
    try:
        if poll():
            continue
    except requests.RequestException:
        # The hub is away.
        session.close()
    ended.wait(0.05)
