'use strict';
// Messages to a device that speaks HTTPS: the unmodified Node.js device SDK polls, completes, rejects and
// abandons.

const assert = require('node:assert/strict');
const { after, before, test } = require('node:test');
const { randomUUID } = require('node:crypto');
const { once } = require('node:events');
const { Client } = require('azure-iot-device');
const { Http } = require('azure-iot-device-http');
const { Hub } = require('../hub');

// The connection string ends at a semicolon; everything else that an id may hold and a path must encode.
const ODD_ID = "node%#?'():@+$=,!*";

let hub;
before(async () => {
  hub = new Hub();
  await hub.start();
});
after(() => hub.remove());

// The SDK asks when it is told to, so that the test knows what an answer belongs to.
async function open(device) {
  const transport = {};
  const client = Client.fromConnectionString(device.connectionString, function (authentication) {
    transport.http = new Http(authentication);
    return transport.http;
  });
  await client.setOptions({ ca: hub.ca, http: { receivePolicy: { manualPolling: true } } });
  await client.open();
  return {
    client,
    async poll() {
      const signal = AbortSignal.timeout(10_000);
      const came = Promise.race([
        once(client, 'message', { signal }),
        once(transport.http, 'error', { signal }).then(([error]) => Promise.reject(error)),
      ]);
      transport.http.receive();
      const [message] = await came;
      return message;
    },
  };
}

async function fates(device, id) {
  const shown = JSON.parse(await hub.run('c2d', 'show', device.id, '--message-id', id, '--output', 'json'));
  return JSON.stringify(shown).toLowerCase();
}

test('a message is polled with its properties and completed', async () => {
  const device = await hub.createDevice(`${ODD_ID}${randomUUID().slice(0, 8)}`);
  const { client, poll } = await open(device);
  await hub.run(
    'c2d', 'send', device.id, 'hello', '--message-id', 'm1', '--correlation-id', 'c 1', '--ack', 'full',
    '--ttl', '1h', '--property', 'color=blue', '--property', 'odd=50% é', '--property', 'empty=',
  );
  const message = await poll();
  assert.equal(message.data.toString(), 'hello');
  assert.equal(message.messageId, 'm1');
  assert.equal(message.correlationId, 'c 1');
  assert.match(message.to, /\/messages\/devicebound$/i);
  const left = Date.parse(message.expiryTimeUtc) - Date.now();
  assert.ok(left > 3_500_000 && left <= 3_600_000, message.expiryTimeUtc);
  // The SDK leaves the prefix on.
  const properties = message.properties.propertyList.map(({ key, value }) => [key, value]);
  assert.deepEqual(properties.sort(), [
    ['iothub-app-color', 'blue'],
    ['iothub-app-empty', ''],
    ['iothub-app-odd', '50%25 %C3%A9'],
  ]);
  await client.complete(message);
  assert.match(await fates(device, 'm1'), /completed/);
  await assert.rejects(client.complete(message), { message: 'Precondition Failed' });
  await client.close();
});

test('a message is abandoned, comes again, and is rejected', async () => {
  const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
  const { client, poll } = await open(device);
  await hub.run('c2d', 'send', device.id, 'again', '--message-id', 'm2');
  const first = await poll();
  await client.abandon(first);
  const second = await poll();
  assert.equal(second.messageId, 'm2');
  assert.notEqual(second.lockToken, first.lockToken);
  await client.reject(second);
  assert.match(await fates(device, 'm2'), /rejected/);
  const letters = await hub.run('c2d', 'dead-letters', 'list', '--device', device.id, '--output', 'json');
  assert.match(letters, /m2/);
  await client.close();
});

test('a device that polls without its key is told so', async () => {
  const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
  const other = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
  const key = (text) => /SharedAccessKey=([^;]+)/.exec(text)[1];
  const wrong = device.connectionString.replace(key(device.connectionString), key(other.connectionString));
  const { client, poll } = await open({ id: device.id, connectionString: wrong });
  await assert.rejects(poll(), (error) => error.response.statusCode === 401);
  await client.close();
});
