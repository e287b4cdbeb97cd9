"""The built-in endpoint through the unmodified Python Event Hubs SDK."""

import datetime
import threading
import time
import uuid

import pytest
from azure.eventhub import CheckpointStore, EventHubConsumerClient, TransportType
from azure.eventhub.exceptions import AuthenticationError, ConnectError, EventHubError
from azure.iot.device import IoTHubDeviceClient

from reading import READ_SECONDS_MAX, body_of, consumer, from_device, read_until


def send(hub, device, bodies):
    client = IoTHubDeviceClient.create_from_connection_string(
        device.connection_string, server_verification_cert=hub.ca.read_text()
    )
    client.connect()
    for body in bodies:
        client.send_message(body)
    client.shutdown()


@pytest.fixture(scope="module")
def filled(hub):
    """Twenty messages of one device: its partition and the events as they stand there."""
    device = hub.create_device(f"fill-{uuid.uuid4().hex[:8]}")
    send(hub, device, [str(n) for n in range(20)])
    read = read_until(
        consumer(hub), lambda events: sum(from_device(e, device.id) for _, e in events) >= 20
    )
    mine = [(p, e) for p, e in read if from_device(e, device.id)]
    return device, mine[0][0], [event for _, event in mine]


def bodies_from(hub, filled, position, count, *, websocket=False, **options):
    device, partition, _ = filled
    read = read_until(
        consumer(hub, websocket=websocket),
        lambda events: sum(from_device(e, device.id) for _, e in events) >= count,
        starting_position=position,
        partition_id=partition,
        **options,
    )
    return [int(body_of(e)) for _, e in read if from_device(e, device.id)]


def test_the_hub_describes_itself_and_its_partitions(hub, filled):
    _, partition, events = filled
    client = consumer(hub)
    with client:
        hub_properties = client.get_eventhub_properties()
        assert hub_properties["eventhub_name"] == "hub"
        assert hub_properties["partition_ids"] == ["0", "1", "2", "3"]
        created = hub_properties["created_at"]
        assert abs(created.timestamp() - time.time()) < 3600
        properties = client.get_partition_properties(partition)
    assert properties["eventhub_name"] == "hub"
    assert properties["id"] == partition
    assert properties["beginning_sequence_number"] == 0
    assert properties["last_enqueued_sequence_number"] >= events[-1].sequence_number
    assert not properties["is_empty"]
    assert properties["last_enqueued_time_utc"] >= events[-1].enqueued_time


def test_an_unknown_partition_is_an_error(hub):
    with consumer(hub, retry_total=0) as client:
        with pytest.raises(EventHubError):
            client.get_partition_properties("99")


@pytest.mark.parametrize("websocket", [False, True], ids=["amqp", "amqp-ws"])
def test_every_start_position(hub, filled, websocket):
    _, _, events = filled

    def check(position, expected, **options):
        got = bodies_from(hub, filled, position, len(expected), websocket=websocket, **options)
        assert got[: len(expected)] == expected

    everything = list(range(20))
    check("-1", everything)
    check(events[4].sequence_number, everything[5:])
    check(events[4].sequence_number, everything[4:], starting_position_inclusive=True)
    check(events[4].offset, everything[5:])
    check(events[4].offset, everything[4:], starting_position_inclusive=True)
    check(events[0].enqueued_time - datetime.timedelta(milliseconds=1), everything)
    after = [n for n, e in enumerate(events) if e.enqueued_time > events[9].enqueued_time]
    check(events[9].enqueued_time, after)


def test_latest_shows_only_what_comes_later(hub, device):
    client = consumer(hub)
    got = []
    arrived = threading.Event()

    def on_event(context, event):
        if event is not None and from_device(event, device.id):
            got.append(body_of(event))
            if got[-1] == b"mark":
                arrived.set()

    send(hub, device, ["before"])
    receiver = threading.Thread(
        target=client.receive, args=(on_event,), kwargs={"starting_position": "@latest"}, daemon=True
    )
    receiver.start()
    # When the links are attached is not to be seen from outside: send until one comes through.
    deadline = time.monotonic() + READ_SECONDS_MAX
    while not arrived.wait(0.2) and time.monotonic() < deadline:
        send(hub, device, ["mark"])
    client.close()
    assert got and b"before" not in got


def test_receive_batch_hands_out_batches(hub, filled):
    device, partition, _ = filled
    client = consumer(hub)
    got, enough = [], threading.Event()

    def on_batch(context, events):
        got.extend(events)
        if sum(from_device(e, device.id) for e in got) >= 20:
            enough.set()

    receiver = threading.Thread(
        target=client.receive_batch,
        args=(on_batch,),
        kwargs={"starting_position": "-1", "partition_id": partition, "max_batch_size": 7},
        daemon=True,
    )
    receiver.start()
    assert enough.wait(READ_SECONDS_MAX)
    client.close()
    assert [int(body_of(e)) for e in got if from_device(e, device.id)] == list(range(20))


def test_the_newest_position_is_told_on_every_event_when_asked_for(hub, filled):
    _, partition, _ = filled
    client = consumer(hub)
    seen, enough = [], threading.Event()

    def on_event(context, event):
        seen.append((event.sequence_number, dict(context.last_enqueued_event_properties)))
        enough.set()

    threading.Thread(
        target=client.receive,
        args=(on_event,),
        kwargs={
            "starting_position": "-1",
            "partition_id": partition,
            "track_last_enqueued_event_properties": True,
        },
        daemon=True,
    ).start()
    assert enough.wait(READ_SECONDS_MAX)
    newest = client.get_partition_properties(partition)
    client.close()
    assert seen[0][1]["sequence_number"] == newest["last_enqueued_sequence_number"]
    assert seen[0][1]["offset"] == newest["last_enqueued_offset"]
    assert seen[0][1]["enqueued_time"] == newest["last_enqueued_time_utc"]


def receiver_with_level(hub, partition, level, group="$Default"):
    """A receiver in a thread: (client, attached-and-receiving event, errors, error event)."""
    client = consumer(hub, group)
    receiving, failed, errors = threading.Event(), threading.Event(), []

    def on_error(context, error):
        errors.append(error)
        failed.set()

    threading.Thread(
        target=client.receive,
        args=(lambda context, event: receiving.set(),),
        kwargs={
            "starting_position": "-1",
            "partition_id": partition,
            "owner_level": level,
            "on_error": on_error,
        },
        daemon=True,
    ).start()
    return client, receiving, errors, failed


def test_owner_levels_steal_and_refuse(hub, filled):
    _, partition, _ = filled
    low, low_receives, _, low_failed = receiver_with_level(hub, partition, 1)
    assert low_receives.wait(READ_SECONDS_MAX)

    # A higher level takes the partition.
    high, high_receives, _, high_failed = receiver_with_level(hub, partition, 5)
    assert high_receives.wait(READ_SECONDS_MAX)
    assert low_failed.wait(READ_SECONDS_MAX)

    # A lower one is refused, and so is one without a level.
    for level in (3, None):
        other, other_receives, errors, other_failed = receiver_with_level(hub, partition, level)
        assert other_failed.wait(READ_SECONDS_MAX)
        assert not other_receives.is_set()
        assert "link:stolen" in str(errors[0]) or "epoch" in str(errors[0]).lower()
        other.close()

    # The same level takes over as well.
    equal, equal_receives, _, _ = receiver_with_level(hub, partition, 5)
    assert equal_receives.wait(READ_SECONDS_MAX)
    assert high_failed.wait(READ_SECONDS_MAX)

    # As soon as the owner is gone, readers without a level are welcome again.
    equal.close()
    plain, plain_receives, _, _ = receiver_with_level(hub, partition, None)
    assert plain_receives.wait(READ_SECONDS_MAX)
    for client in (low, high, plain):
        client.close()


def test_consumer_groups_are_made_by_configuration_and_read_apart(own_hub):
    import json

    device = own_hub.create_device("grouped")
    send(own_hub, device, ["one", "two"])
    shape = json.loads(own_hub.run("hub", "show", "--output", "json"))
    events = shape["properties"]["eventHubEndpoints"]["events"]
    assert events["consumerGroups"] == ["$Default"]
    events["consumerGroups"] = ["$Default", "analytics"]
    file = own_hub.folder / "hub.json"
    file.write_text(json.dumps(shape))
    own_hub.run("hub", "apply", str(file))
    for group in ("$Default", "analytics"):
        got = read_until(consumer(own_hub, group), lambda events: len(events) >= 2)
        assert [body_of(e) for _, e in got] == [b"one", b"two"]


def test_without_the_right_there_is_nothing_to_read(hub):
    client = EventHubConsumerClient.from_connection_string(
        hub.event_hub_string("registryRead"),
        consumer_group="$Default",
        connection_verify=str(hub.ca),
        retry_total=0,
    )
    with client, pytest.raises((AuthenticationError, ConnectError, EventHubError)):
        client.get_eventhub_properties()


def test_the_emulator_convention_reads_without_tls(hub, filled):
    device, partition, _ = filled
    string = hub.event_hub_string().replace(
        f"sb://{hub.address}", f"sb://{hub.address}:5672"
    )
    client = EventHubConsumerClient.from_connection_string(
        string + ";UseDevelopmentEmulator=true", consumer_group="$Default"
    )
    got = read_until(
        client,
        lambda events: sum(from_device(e, device.id) for _, e in events) >= 20,
        partition_id=partition,
    )
    assert [int(body_of(e)) for _, e in got if from_device(e, device.id)] == list(range(20))


class MemoryCheckpoints(CheckpointStore):
    """A checkpoint store written against the SDK's public interface."""

    def __init__(self):
        self.guard = threading.Lock()
        self.ownership = {}
        self.checkpoints = {}

    def list_ownership(self, fully_qualified_namespace, eventhub_name, consumer_group, **kwargs):
        with self.guard:
            return [dict(entry) for entry in self.ownership.values()]

    def claim_ownership(self, ownership_list, **kwargs):
        claimed = []
        with self.guard:
            for wanted in ownership_list:
                key = wanted["partition_id"]
                known = self.ownership.get(key)
                if known is not None and known["etag"] != wanted.get("etag"):
                    continue
                entry = dict(wanted, etag=uuid.uuid4().hex, last_modified_time=time.time())
                self.ownership[key] = entry
                claimed.append(dict(entry))
        return claimed

    def list_checkpoints(self, fully_qualified_namespace, eventhub_name, consumer_group, **kwargs):
        with self.guard:
            return [dict(entry) for entry in self.checkpoints.values()]

    def update_checkpoint(self, checkpoint, **kwargs):
        with self.guard:
            self.checkpoints[checkpoint["partition_id"]] = dict(checkpoint)

    def owners(self):
        """Partitions by the owner that holds them now."""
        with self.guard:
            held = {}
            for entry in self.ownership.values():
                held.setdefault(entry["owner_id"], set()).add(entry["partition_id"])
            return held


def test_two_consumers_share_the_partitions_and_one_takes_over_from_the_checkpoints(hub):
    devices = [hub.create_device(f"lb-{uuid.uuid4().hex[:8]}") for _ in range(16)]
    store = MemoryCheckpoints()
    guard = threading.Lock()
    got = []

    def start():
        client = consumer(
            hub, checkpoint_store=store, load_balancing_interval=1, partition_ownership_expiration_interval=6
        )

        def on_event(context, event):
            with guard:
                got.append((event.system_properties[b"iothub-connection-device-id"], body_of(event)))
            context.update_checkpoint(event)

        thread = threading.Thread(
            target=client.receive, args=(on_event,), kwargs={"starting_position": "-1"}, daemon=True
        )
        thread.start()
        return client, thread

    def until(condition, what):
        deadline = time.monotonic() + READ_SECONDS_MAX
        wait = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, what
            wait.wait(0.05)

    def have(bodies):
        wanted = {(d.id.encode(), body) for d in devices for body in bodies}
        with guard:
            return wanted <= set(got)

    first, first_thread = start()
    until(lambda: sum(map(len, store.owners().values())) == 4, "one consumer takes all")
    second, second_thread = start()
    until(
        lambda: sorted(len(held) for held in store.owners().values()) == [2, 2],
        "two consumers share",
    )
    for device in devices:
        send(hub, device, ["a"])
    until(lambda: have([b"a"]), "both together read everything")

    first.close()
    first_thread.join(READ_SECONDS_MAX)
    for device in devices:
        send(hub, device, ["b"])
    until(lambda: have([b"b"]), "the other takes over")
    until(lambda: max(map(len, store.owners().values())) == 4, "and holds all partitions")
    second.close()
    second_thread.join(READ_SECONDS_MAX)

    # A third starts from the checkpoints and not from the beginning.
    with guard:
        got.clear()
    third, third_thread = start()
    for device in devices:
        send(hub, device, ["c"])
    until(lambda: have([b"c"]), "the third reads on")
    third.close()
    third_thread.join(READ_SECONDS_MAX)
    with guard:
        assert not [body for _, body in got if body == b"a"]


def test_a_reader_that_stops_costs_nothing_but_its_own_delay(hub, device):
    stuck, go_on = threading.Event(), threading.Event()
    slow = consumer(hub)

    def on_event(context, event):
        stuck.set()
        go_on.wait(READ_SECONDS_MAX)

    send(hub, device, ["first"])
    thread = threading.Thread(
        target=slow.receive, args=(on_event,), kwargs={"starting_position": "-1"}, daemon=True
    )
    thread.start()
    assert stuck.wait(READ_SECONDS_MAX)
    send(hub, device, [b"x" * 10000 for _ in range(300)])
    got = read_until(
        consumer(hub), lambda events: sum(from_device(e, device.id) for _, e in events) >= 301
    )
    assert sum(from_device(e, device.id) for _, e in got) >= 301
    go_on.set()
    slow.close()
    thread.join(READ_SECONDS_MAX)
