'use strict';
// Telemetry of the unmodified Node.js device SDK over MQTT and AMQP, each also over WebSocket, read back
// through the unmodified Event Hubs SDK.

const assert = require('node:assert/strict');
const { after, before, describe, test } = require('node:test');
const { randomBytes, randomUUID } = require('node:crypto');
const { Client, Message } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { Hub, inTrustingProcess } = require('../hub');

const NASTY = [
  'plain', 'with blank', '+', 'a+b', '%', '%20', '/', 'a/b', '&', 'a&b=c', '=', '$', '$.mid', '?', '#',
  'é', '日本語', '🚀', '"', '\\', ';:,.',
];

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

const isAmqp = (transport) => [Amqp, AmqpWs].includes(transport);

function randomMessage(number, transport) {
  const message = new Message(randomBytes(number % 5 === 0 ? 0 : 1 + Math.floor(Math.random() * 5000)));
  message.messageId = `message ${number}`;
  message.correlationId = `c/${number}&=é`;
  // Over AMQP the SDK leaves it out.
  message.userId = isAmqp(transport) ? undefined : 'someone';
  message.contentType = 'application/octet-stream';
  message.contentEncoding = 'utf-8';
  const expiry = '2031-01-02T03:04:05.000Z';
  // Over AMQP the SDK takes a number of milliseconds alone.
  message.expiryTimeUtc = isAmqp(transport) ? Date.parse(expiry) : expiry;
  const count = number === 0 ? 40 : Math.floor(Math.random() * 12);
  for (let index = 0; index < count; index += 1) {
    message.properties.add(`${index}${NASTY[index % NASTY.length]}`, NASTY[(index * 7 + number) % NASTY.length]);
  }
  return message;
}

function asExpected(message) {
  const properties = {};
  for (let index = 0; index < message.properties.count(); index += 1) {
    const { key, value } = message.properties.getItem(index);
    properties[key] = value;
  }
  return {
    body: message.getBytes().toString('base64'),
    messageId: message.messageId,
    correlationId: message.correlationId,
    userId: message.userId,
    contentType: message.contentType,
    contentEncoding: message.contentEncoding,
    expiry: new Date(message.expiryTimeUtc).getTime(),
    properties,
  };
}

for (const [name, transport] of [
  ['MQTT', Mqtt],
  ['MQTT over WebSocket', MqttWs],
  ['AMQP', Amqp],
  ['AMQP over WebSocket', AmqpWs],
]) {
  describe(name, () => {
    test('every body and property comes out as it went in', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const client = await open(device, transport);
      const expected = [];
      for (let number = 0; number < 30; number += 1) {
        const message = randomMessage(number, transport);
        expected.push(asExpected(message));
        await client.sendEvent(message);
      }
      await client.close();
      await inTrustingProcess(hub, 'read.js', {
        DEVICE_ID: device.id,
        EXPECTED: JSON.stringify(expected),
      });
    });

    test('many messages in flight are all acknowledged and keep their order', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const client = await open(device, transport);
      const sends = [];
      const expected = [];
      for (let number = 0; number < 300; number += 1) {
        const message = new Message(String(number));
        expected.push(asExpected(message));
        sends.push(client.sendEvent(message));
      }
      await Promise.all(sends);
      await client.close();
      await inTrustingProcess(hub, 'read.js', {
        DEVICE_ID: device.id,
        EXPECTED: JSON.stringify(expected.map(({ body }) => ({ body }))),
      });
    });

    test('a wrong key is refused', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const other = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const key = (text) => /SharedAccessKey=([^;]+)/.exec(text)[1];
      const wrong = device.connectionString.replace(
        key(device.connectionString),
        key(other.connectionString),
      );
      await assert.rejects(open({ connectionString: wrong }, transport), { name: 'UnauthorizedError' });
    });

    test('a twin request fails with the error that the hub names', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const client = await open(device, transport);
      await assert.rejects(client.getTwin());
      // Over AMQP the SDK gives its connection up when it is refused a link.
      if (!isAmqp(transport)) await client.sendEvent(new Message('after'));
      await client.close();
    });

    test('a client comes back by itself after a restart of the hub', async () => {
      const device = await hub.createDevice(`node-${randomUUID().slice(0, 8)}`);
      const client = await open(device, transport);
      await client.sendEvent(new Message('before'));
      await hub.stop();
      await hub.start();
      await client.sendEvent(new Message('after'));
      await client.close();
      await inTrustingProcess(hub, 'read.js', {
        DEVICE_ID: device.id,
        EXPECTED: JSON.stringify(
          ['before', 'after'].map((text) => ({ body: Buffer.from(text).toString('base64') })),
        ),
      });
    });
  });
}
