"""A Python device that lives through all kill rounds: sends numbers, prints each acknowledged one.

Reads `connection string`, `CA file` from its arguments; ends when its standard input closes.
"""

import sys
import threading

from azure.iot.device import IoTHubDeviceClient, Message

connection_string, ca_file = sys.argv[1:]
client = IoTHubDeviceClient.create_from_connection_string(
    connection_string, server_verification_cert=open(ca_file).read(), keep_alive=10
)
ended = threading.Event()


def wait_for_end():
    sys.stdin.read()
    ended.set()


threading.Thread(target=wait_for_end, daemon=True).start()
number = 0
while not ended.is_set():
    try:
        # Returns when the hub has acknowledged, however often the SDK had to connect for it.
        client.send_message(Message(str(number)))
    except Exception as error:
        # The SDK gives up a message when the connection is lost at the wrong moment; the device
        # sends it again, as its application would.
        print(f"again {number}: {error!r}", file=sys.stderr, flush=True)
        ended.wait(0.1)
        continue
    print(number, flush=True)
    number += 1
client.shutdown()
