'use strict';
// A device that speaks HTTPS, with the unmodified Node.js device SDK: it sends single messages and batches, and
// it polls, completes, rejects and abandons messages to it.

const assert = require('node:assert/strict');
const { after, before, test } = require('node:test');
const { randomBytes, randomUUID } = require('node:crypto');
const { once } = require('node:events');
const { Client, Message } = require('azure-iot-device');
const { Http } = require('azure-iot-device-http');
const { Hub, inTrustingProcess } = require('../hub');

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

// What a property's name and value may be made of over HTTPS, by Azure's documentation.
const ALPHABET = "!#$%&'*+-.^_`|~09AZaz";

async function read(device, expected) {
  await inTrustingProcess(hub, 'read.js', { DEVICE_ID: device.id, EXPECTED: JSON.stringify(expected) });
}

test('every body and property comes out as it went in', async () => {
  const device = await hub.createDevice(`${ODD_ID}${randomUUID().slice(0, 8)}`);
  const { client } = await open(device);
  const expected = [];
  for (let number = 0; number < 30; number += 1) {
    const message = new Message(randomBytes(number % 5 === 0 ? 0 : number * 100));
    message.messageId = `message-${number}`;
    message.correlationId = `c-${number}`;
    message.userId = 'someone';
    message.contentType = 'application/octet-stream';
    message.contentEncoding = 'utf-8';
    message.expiryTimeUtc = '2031-01-02T03:04:05.000Z';
    const properties = { Room: 'Attic', room2: 'é', [`${number}${ALPHABET}`]: ALPHABET, empty: '' };
    for (const [name, value] of Object.entries(properties)) {
      message.properties.add(name, value);
    }
    await client.sendEvent(message);
    expected.push({
      body: message.getBytes().toString('base64'),
      messageId: message.messageId,
      correlationId: message.correlationId,
      userId: message.userId,
      contentType: message.contentType,
      contentEncoding: message.contentEncoding,
      expiry: Date.parse(message.expiryTimeUtc),
      properties,
    });
  }
  await client.close();
  await read(device, expected);
});

test('a batch is stored as single messages', async () => {
  const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
  const { client } = await open(device);
  const messages = [];
  for (let number = 0; number < 100; number += 1) {
    const message = new Message(randomBytes(number * 10));
    message.properties.add('Number', String(number));
    messages.push(message);
  }
  await client.sendEventBatch(messages);
  await client.close();
  const seen = (message, number) => ({
    body: message.getBytes().toString('base64'),
    properties: { Number: String(number) },
  });
  await read(device, messages.map(seen));
});

test('a message over 256 KB is refused as too large, and the next one is taken', async () => {
  const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
  const { client } = await open(device);
  for (const size of [300_000, 3_000_000]) {
    await assert.rejects(client.sendEvent(new Message(randomBytes(size))), { name: 'MessageTooLargeError' });
  }
  await client.sendEvent(new Message(randomBytes(255 * 1024)));
  await client.close();
  await read(device, [{ length: 255 * 1024 }]);
});
