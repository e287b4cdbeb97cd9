'use strict';
// Start positions, owner levels and properties through @azure/event-hubs, over AMQP and WebSocket.

const assert = require('node:assert/strict');
const WebSocket = require('ws');
const { earliestEventPosition, latestEventPosition } = require('@azure/event-hubs');
const { READ_MILLIS_MAX, consumer, readFrom } = require('./reading');

const deviceId = process.env.DEVICE_ID;

function deferred() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  const timer = setTimeout(() => resolve('too late'), READ_MILLIS_MAX);
  return { promise, resolve: (value) => (clearTimeout(timer), resolve(value)) };
}

// A subscription to one partition with an owner level: its first event or its first error.
function subscribe(partitionId, ownerLevel) {
  const client = consumer();
  const first = deferred();
  const failed = deferred();
  const subscription = client.subscribe(
    partitionId,
    {
      processEvents: async (events) => events.length && first.resolve('receives'),
      processError: async (error) => failed.resolve(error.code || error.name),
    },
    { startPosition: earliestEventPosition, ...(ownerLevel === undefined ? {} : { ownerLevel }) },
  );
  return {
    first: first.promise,
    failed: failed.promise,
    close: async () => {
      await subscription.close();
      await client.close();
    },
  };
}

async function main() {
  const all = await readFrom(deviceId, 20);
  assert.deepEqual(all.map((event) => Number(String(event.body))), [...Array(20).keys()]);

  const client = consumer();
  const properties = await client.getEventHubProperties();
  assert.equal(properties.name, 'hub');
  assert.deepEqual(properties.partitionIds, ['0', '1', '2', '3']);
  assert.deepEqual(await client.getPartitionIds(), ['0', '1', '2', '3']);
  let partition;
  for (const id of properties.partitionIds) {
    const { lastEnqueuedSequenceNumber, isEmpty, beginningSequenceNumber } =
      await client.getPartitionProperties(id);
    if (lastEnqueuedSequenceNumber >= 19) partition = id;
    assert.equal(isEmpty, lastEnqueuedSequenceNumber < 0);
    assert.equal(beginningSequenceNumber, 0);
  }
  await client.close();

  const webSocket = () => consumer('$Default', { webSocketOptions: { webSocket: WebSocket } });
  for (const make of [consumer, webSocket]) {
    const from = async (position, count) =>
      (await readFrom(deviceId, count, position, make())).slice(0, count).map((e) => Number(String(e.body)));
    const { sequenceNumber, offset } = all[4];
    const rest = [...Array(15).keys()].map((n) => n + 5);
    assert.deepEqual(await from({ sequenceNumber }, 15), rest);
    assert.deepEqual(await from({ sequenceNumber, isInclusive: true }, 16), [4, ...rest]);
    assert.deepEqual(await from({ offset }, 15), rest);
    assert.deepEqual(await from({ offset, isInclusive: true }, 16), [4, ...rest]);
    assert.deepEqual(await from({ enqueuedOn: all[0].enqueuedTimeUtc.getTime() - 1 }, 20), [
      ...Array(20).keys(),
    ]);
  }

  const low = subscribe(partition, 1);
  assert.equal(await low.first, 'receives');
  const high = subscribe(partition, 2);
  assert.equal(await high.first, 'receives');
  assert.equal(await low.failed, 'ReceiverDisconnectedError');
  const plain = subscribe(partition);
  assert.equal(await plain.failed, 'ReceiverDisconnectedError');
  for (const subscription of [low, plain, high]) await subscription.close();

  // Nothing old comes from the latest position.
  const late = consumer();
  const seen = [];
  const started = deferred();
  const subscription = late.subscribe(
    partition,
    {
      processInitialize: async () => started.resolve('started'),
      processEvents: async (events) => seen.push(...events),
      processError: async (error) => seen.push(error),
    },
    { startPosition: latestEventPosition },
  );
  assert.equal(await started.promise, 'started');
  await late.getPartitionProperties(partition);
  await subscription.close();
  await late.close();
  assert.deepEqual(seen, []);
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
