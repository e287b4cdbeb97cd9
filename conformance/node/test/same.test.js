'use strict';
// The same message, sent over each of the five transports, is the same message to whoever reads it; and the same
// message to a device is the same at each receiver.

const assert = require('node:assert/strict');
const { after, before, test } = require('node:test');
const { randomUUID } = require('node:crypto');
const { EventEmitter, once } = require('node:events');
const { Client, Message } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { Http } = require('azure-iot-device-http');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { Hub, inTrustingProcess } = require('../hub');

const TRANSPORTS = { Mqtt, MqttWs, Amqp, AmqpWs, Http };

// What Azure documents for names and values that every protocol can carry.
const ALPHABET = "!#$%&'*+-.^_`|~09AZaz";

let hub;
before(async () => {
  hub = new Hub();
  await hub.start();
});
after(() => hub.remove());

async function open(device, transport) {
  const client = Client.fromConnectionString(device.connectionString, transport);
  await client.setOptions({ ca: hub.ca, http: { receivePolicy: { interval: 1 } } });
  await client.open();
  return client;
}

test('a message is the same to its reader whatever it was sent over', async () => {
  const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
  const expected = [];
  for (const [name, transport] of Object.entries(TRANSPORTS)) {
    const message = new Message(Buffer.from([0, 1, 2, 255, 10, 13]));
    message.messageId = ALPHABET;
    message.correlationId = `c ${ALPHABET}`;
    message.contentType = 'application/json';
    message.contentEncoding = 'utf-8';
    // Over AMQP the SDK takes a number of milliseconds alone.
    const expiry = '2031-01-02T03:04:05.000Z';
    message.expiryTimeUtc = name.startsWith('Amqp') ? Date.parse(expiry) : expiry;
    message.properties.add('Room', 'Attic');
    message.properties.add(ALPHABET, ALPHABET);
    const client = await open(device, transport);
    await client.sendEvent(message);
    await client.close();
    expected.push({
      body: message.getBytes().toString('base64'),
      messageId: ALPHABET,
      correlationId: `c ${ALPHABET}`,
      userId: undefined,
      contentType: 'application/json',
      contentEncoding: 'utf-8',
      expiry: Date.parse(expiry),
      properties: { Room: 'Attic', [ALPHABET]: ALPHABET },
      auth: '{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}',
      sender: device.id,
    });
  }
  await inTrustingProcess(hub, 'read.js', { DEVICE_ID: device.id, EXPECTED: JSON.stringify(expected) });
});

test('a message to a device is the same over whatever it comes', async () => {
  const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
  const seen = {};
  for (const [name, transport] of Object.entries(TRANSPORTS)) {
    await hub.run(
      'c2d', 'send', device.id, 'hello', '--message-id', 'm1', '--correlation-id', 'c1',
      '--content-type', 'text/plain', '--content-encoding', 'utf-8', '--property', 'room=attic',
      '--property', 'odd=50%', '--ttl', '1h',
    );
    const client = await open(device, transport);
    // Over AMQP the SDK lets go of its link when nobody listens any more.
    const messages = new EventEmitter();
    client.on('message', (message) => messages.emit('came', message));
    const [message] = await once(messages, 'came', { signal: AbortSignal.timeout(20_000) });
    await client.complete(message);
    await client.close();
    // Over HTTPS the SDK leaves the prefix on.
    const properties = message.properties.propertyList.map(({ key, value }) => [key.replace(/^iothub-app-/, ''), value]);
    const { messageId, correlationId, to, contentType, contentEncoding } = message;
    seen[name] = {
      body: message.data.toString(), messageId, correlationId, to, contentType, contentEncoding,
      properties: properties.filter(([key]) => key !== 'iothub-ack').sort(),
    };
  }
  // These two headers its SDK does not read.
  const { contentType, contentEncoding, ...others } = seen.Http;
  assert.deepEqual([contentType, contentEncoding], [undefined, undefined]);
  seen.Http = { ...others, contentType: 'text/plain', contentEncoding: 'utf-8' };
  for (const [name, message] of Object.entries(seen)) {
    assert.deepEqual(message, seen.Amqp, name);
  }
  assert.equal(seen.Amqp.contentType, 'text/plain');
  assert.deepEqual(seen.Amqp.properties, [['odd', '50%'], ['room', 'attic']]);
});
