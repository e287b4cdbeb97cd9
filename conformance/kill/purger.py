"""A service that purges a device's queue over REST again and again, through all kill rounds.

Reads connection string, CA file and device from its arguments; ends when its standard input closes.
"""

import sys

from rest import API, Rest, until_input_ends

string, ca, device = sys.argv[1:]
hub = Rest(string, ca)


def purge():
    """Purges, and is content with a pause."""
    hub.call("DELETE", f"/devices/{device}/commands?{API}")
    return False


until_input_ends(purge, 0.2)
