'use strict';
// The registry and the built-in endpoint through the unmodified Node.js service SDKs.

const { after, before, test } = require('node:test');
const { randomUUID } = require('node:crypto');
const { Client, Message } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { Hub, inTrustingProcess } = require('../hub');

let hub;
before(async () => {
  hub = new Hub();
  await hub.start();
});
after(() => hub.remove());

async function sendNumbers(device, count, from = 0) {
  const client = Client.fromConnectionString(device.connectionString, Mqtt);
  await client.setOptions({ ca: hub.ca });
  await client.open();
  for (let number = from; number < from + count; number += 1) {
    await client.sendEvent(new Message(String(number)));
  }
  await client.close();
}

test('the registry of azure-iothub works unmodified', async () => {
  await inTrustingProcess(hub, 'registry.js');
});

test('every start position, owner levels, properties and batches of @azure/event-hubs', async () => {
  const device = await hub.createDevice(`fill-${randomUUID().slice(0, 8)}`);
  await sendNumbers(device, 20);
  await inTrustingProcess(hub, 'positions.js', { DEVICE_ID: device.id });
});

test('two consumers with one checkpoint store share the partitions and take over', async () => {
  const devices = [];
  for (let n = 0; n < 12; n += 1) devices.push(await hub.createDevice(`lb-${randomUUID().slice(0, 8)}`));
  for (const device of devices) await sendNumbers(device, 2);
  await inTrustingProcess(hub, 'balancing.js', {
    DEVICES: JSON.stringify(devices),
    CA: hub.ca,
  });
});
