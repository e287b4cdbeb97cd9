'use strict';
// Two balanced consumers with one checkpoint store, through @azure/event-hubs.

const assert = require('node:assert/strict');
const { randomUUID } = require('node:crypto');
const { setTimeout: pause } = require('node:timers/promises');
const { EventHubConsumerClient, earliestEventPosition } = require('@azure/event-hubs');
const { Client, Message } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { READ_MILLIS_MAX } = require('./reading');

// A checkpoint store written against the SDK's public interface.
class MemoryCheckpoints {
  ownership = new Map();
  checkpoints = new Map();

  async listOwnership() {
    return [...this.ownership.values()].map((entry) => ({ ...entry }));
  }

  async claimOwnership(wanted) {
    const claimed = [];
    for (const entry of wanted) {
      const known = this.ownership.get(entry.partitionId);
      if (known && known.etag !== entry.etag) continue;
      const held = { ...entry, etag: randomUUID(), lastModifiedTimeInMs: Date.now() };
      this.ownership.set(entry.partitionId, held);
      claimed.push({ ...held });
    }
    return claimed;
  }

  async updateCheckpoint(checkpoint) {
    this.checkpoints.set(checkpoint.partitionId, { ...checkpoint });
  }

  async listCheckpoints() {
    return [...this.checkpoints.values()].map((entry) => ({ ...entry }));
  }

  shares() {
    const counts = new Map();
    for (const { ownerId } of this.ownership.values()) {
      if (ownerId) counts.set(ownerId, (counts.get(ownerId) ?? 0) + 1);
    }
    return [...counts.values()].sort();
  }
}

const store = new MemoryCheckpoints();
const got = new Set();

function start() {
  const client = new EventHubConsumerClient('$Default', process.env.EVENT_HUB_STRING, store, {
    loadBalancingOptions: { strategy: 'greedy', updateIntervalInMs: 500, partitionOwnershipExpirationIntervalInMs: 5000 },
  });
  const subscription = client.subscribe(
    {
      processEvents: async (events, context) => {
        for (const event of events) {
          got.add(`${event.systemProperties['iothub-connection-device-id']} ${event.body}`);
        }
        if (events.length) await context.updateCheckpoint(events[events.length - 1]);
      },
      processError: async () => {},
    },
    { startPosition: earliestEventPosition },
  );
  return async () => {
    await subscription.close();
    await client.close();
  };
}

async function until(condition, what) {
  const deadline = Date.now() + READ_MILLIS_MAX;
  while (!condition()) {
    assert.ok(Date.now() < deadline, what);
    await pause(50);
  }
}

async function main() {
  const devices = JSON.parse(process.env.DEVICES);
  const have = (body) => () => devices.every(({ id }) => got.has(`${id} ${body}`));
  const stopFirst = start();
  await until(have(1), 'one consumer reads everything');
  const stopSecond = start();
  await until(() => store.shares().join() === '2,2', 'two consumers share');
  await stopFirst();
  for (const { connectionString } of devices) {
    const client = Client.fromConnectionString(connectionString, Mqtt);
    await client.setOptions({ ca: process.env.CA });
    await client.open();
    await client.sendEvent(new Message('2'));
    await client.close();
  }
  await until(have(2), 'the other takes over');
  await stopSecond();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
