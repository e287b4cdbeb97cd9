"""Reads what the hub stored, through the unmodified Event Hubs SDK."""

import threading

from azure.eventhub import EventHubConsumerClient, TransportType

READ_SECONDS_MAX = 60


def consumer(hub, group="$Default", *, websocket=False, **options):
    """A consumer client over TLS with nothing set but the CA."""
    return EventHubConsumerClient.from_connection_string(
        hub.event_hub_string(),
        consumer_group=group,
        connection_verify=str(hub.ca),
        transport_type=TransportType.AmqpOverWebsocket if websocket else TransportType.Amqp,
        **options,
    )


def positions(client):
    """The next sequence number of every partition, to be read from later."""
    return {
        partition: client.get_partition_properties(partition)["last_enqueued_sequence_number"]
        for partition in client.get_partition_ids()
    }


def read_until(client, enough, *, starting_position="-1", **options):
    """Receives from all partitions until `enough(events)` holds; returns the events.

    Events come as `(partition_id, EventData)`. In batches, because the SDK hands out single events
    only a few times a second once nothing new comes in.
    """
    events = []
    errors = []
    done = threading.Event()
    guard = threading.Lock()

    def on_batch(context, batch):
        with guard:
            events.extend((context.partition_id, event) for event in batch)
            if enough(events):
                done.set()

    def on_error(context, error):
        errors.append(error)
        done.set()

    receiver = threading.Thread(
        target=client.receive_batch,
        args=(on_batch,),
        kwargs={
            "starting_position": starting_position,
            "on_error": on_error,
            "max_wait_time": 0.1,
            **options,
        },
        daemon=True,
    )
    receiver.start()
    finished = done.wait(READ_SECONDS_MAX)
    client.close()
    receiver.join(READ_SECONDS_MAX)
    assert not errors, errors
    with guard:
        assert finished, f"only {len(events)} events came"
        return list(events)


class Follower:
    """Reads everything that a hub stores, as it comes, so that not every test reads from the start."""

    def __init__(self, hub):
        self.client = consumer(hub)
        self.events, self.failed = [], None
        self.changed = threading.Condition()
        self.thread = threading.Thread(
            target=self.client.receive_batch,
            args=(self._on_batch,),
            kwargs={
                "starting_position": "-1",
                "on_error": self._on_error,
                "max_wait_time": 0.1,
            },
            daemon=True,
        )
        self.thread.start()

    def _on_batch(self, context, batch):
        with self.changed:
            self.events.extend(batch)
            self.changed.notify_all()

    def _on_error(self, context, error):
        with self.changed:
            self.failed = error
            self.changed.notify_all()

    def of(self, device_id, count):
        """The events of a device, of which there must be so many and no more."""

        def found():
            assert self.failed is None, self.failed
            return [event for event in self.events if from_device(event, device_id)]

        with self.changed:
            self.changed.wait_for(lambda: len(found()) >= count, READ_SECONDS_MAX)
            assert len(found()) == count, [body_of(event) for event in found()]
            return found()

    def close(self):
        self.client.close()
        self.thread.join(READ_SECONDS_MAX)


def body_of(event):
    """The body as the bytes that were sent."""
    return b"".join(event.body)


def from_device(event, device_id):
    """Whether the hub stamped this device on the event."""
    return event.system_properties.get(b"iothub-connection-device-id") == device_id.encode()


def events_of(hub, device_id, count, **options):
    """The first `count` events that a device sent, in the order read."""
    client = consumer(hub)
    events = read_until(
        client,
        lambda events: sum(from_device(e, device_id) for _, e in events) >= count,
        **options,
    )
    return [event for _, event in events if from_device(event, device_id)]
