'use strict';
// A device that speaks AMQP: the unmodified Node.js device SDK receives, completes, rejects and abandons its
// messages.

const assert = require('node:assert/strict');
const { after, before, describe, test } = require('node:test');
const { randomUUID } = require('node:crypto');
const { EventEmitter, once } = require('node:events');
const { Client, Message } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { Hub } = require('../hub');

let hub;
before(async () => {
  hub = new Hub();
  await hub.start();
});
after(() => hub.remove());

async function open(device, transport) {
  const client = Client.fromConnectionString(device.connectionString, transport);
  await client.setOptions({ ca: hub.ca });
  await client.open();
  return client;
}

// The SDK lets go of its link, and of every message, when nobody listens any more.
function listen(client) {
  const messages = new EventEmitter();
  client.on('message', (message) => messages.emit('came', message));
  return async () => (await once(messages, 'came', { signal: AbortSignal.timeout(10_000) }))[0];
}

async function fates(device, id) {
  const shown = JSON.parse(await hub.run('c2d', 'show', device.id, '--message-id', id, '--output', 'json'));
  return JSON.stringify(shown).toLowerCase();
}

for (const [name, transport] of [['AMQP', Amqp], ['AMQP over WebSocket', AmqpWs]]) {
  describe(name, () => {
    test('a message comes with its properties and is completed', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      await hub.run(
        'c2d', 'send', device.id, 'hello', '--message-id', 'm1', '--correlation-id', 'c 1', '--ack', 'full',
        '--ttl', '1h', '--property', 'color=blue', '--property', 'odd=50% é', '--property', 'empty=',
      );
      const client = await open(device, transport);
      const message = await listen(client)();
      assert.equal(message.data.toString(), 'hello');
      assert.equal(message.messageId, 'm1');
      assert.equal(message.correlationId, 'c 1');
      assert.match(message.to, /\/messages\/devicebound$/i);
      const left = new Date(message.expiryTimeUtc).getTime() - Date.now();
      assert.ok(left > 3_500_000 && left <= 3_600_000, String(message.expiryTimeUtc));
      const properties = message.properties.propertyList.map(({ key, value }) => [key, value]);
      assert.deepEqual(properties.sort(), [
        ['color', 'blue'],
        ['empty', ''],
        ['odd', '50% é'],
      ]);
      assert.equal(message.ack, 'full');
      await client.complete(message);
      await client.close();
      assert.match(await fates(device, 'm1'), /completed/);
    });

    test('a message is abandoned, comes again, and is rejected', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const client = await open(device, transport);
      const next = listen(client);
      const came = next();
      await hub.run('c2d', 'send', device.id, 'again', '--message-id', 'm2');
      const first = await came;
      const coming = next();
      await client.abandon(first);
      const second = await coming;
      assert.equal(second.messageId, 'm2');
      await client.reject(second);
      await client.close();
      assert.match(await fates(device, 'm2'), /rejected/);
      const letters = await hub.run('c2d', 'dead-letters', 'list', '--device', device.id, '--output', 'json');
      assert.match(letters, /m2/);
    });

    test('what a client leaves unsettled comes to its next one', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const first = await open(device, transport);
      const came = listen(first)();
      await hub.run('c2d', 'send', device.id, 'twice', '--message-id', 'm3');
      await came;
      await first.close();
      const second = await open(device, transport);
      const message = await listen(second)();
      assert.equal(message.messageId, 'm3');
      await second.complete(message);
      await second.close();
      assert.match(await fates(device, 'm3'), /completed/);
    });

    test('a message that is too large is refused, and the next one is taken', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const client = await open(device, transport);
      await assert.rejects(client.sendEvent(new Message(Buffer.alloc(262_145))), /MessageTooLarge|message-size/i);
      await client.sendEvent(new Message('after'));
      await client.close();
    });

    test('a device that is disabled is cut off', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const client = await open(device, transport);
      client.on('error', () => {});
      await client.sendEvent(new Message('before'));
      await hub.run('device', 'update', device.id, '--status', 'disabled');
      await assert.rejects(client.sendEvent(new Message('after')));
      await client.close().catch(() => {});
    });
  });
}
