"""A device that polls over HTTPS and lives through all kill rounds.

Reads connection string and CA file from its arguments. A message says what to do with it: `N complete`,
`N reject` or `N abandon`. Prints `got` and the message before it does that, and `completed N` or
`rejected N` when the hub has confirmed it. Ends when its standard input closes.
"""

import sys

from rest import API, Rest, until_input_ends

hub = Rest(*sys.argv[1:])
base = f"/devices/{hub.device}/messages/devicebound"


def poll():
    """Takes one message; whether there was one."""
    got = hub.call("GET", f"{base}?{API}")
    if got.status_code != 200:
        return False
    message = got.content.decode()
    print(f"got {message}", flush=True)
    number, what = message.split()
    lock = got.headers["ETag"].strip('"')
    if what == "abandon":
        hub.call("POST", f"{base}/{lock}/abandon?{API}")
        return True
    done = hub.call("DELETE", f"{base}/{lock}?{API}{'&reject' if what == 'reject' else ''}")
    if done.status_code == 204:
        print(f"{what}{'ed' if what == 'reject' else 'd'} {number}", flush=True)
    return True


until_input_ends(poll, 0.05)
