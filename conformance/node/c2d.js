'use strict';
// Messages to devices through the unmodified Node.js SDKs, driven by lines of JSON.
//
//   node c2d.js send amqp|amqp-ws       SERVICE_STRING; a line in is a message, a line out its fate
//   node c2d.js feedback amqp|amqp-ws   SERVICE_STRING; a line out is a feedback record
//   node c2d.js receive mqtt|mqtt-ws|http   DEVICE_STRING, CA; a line out is a message, completed
//
// Prints {"ready":true} first and ends when its standard input closes. The service SDK takes its trust
// from NODE_EXTRA_CA_CERTS.

const readline = require('node:readline');

const [role, transport] = process.argv.slice(2);
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

function service() {
  const { Client } = require('azure-iothub');
  const { Amqp, AmqpWs } = require('azure-iothub');
  return Client.fromConnectionString(process.env.SERVICE_STRING, { amqp: Amqp, 'amqp-ws': AmqpWs }[transport]);
}

async function send() {
  const { Message } = require('azure-iot-common');
  const client = service();
  await client.open();
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { deviceId, body, properties, ...system } = JSON.parse(line);
    const message = new Message(Buffer.from(body, 'base64'));
    Object.assign(message, system);
    for (const [name, value] of Object.entries(properties || {})) message.properties.add(name, value);
    try {
      await client.send(deviceId, message);
      say({ sent: true });
    } catch (error) {
      say({ sent: false, error: error.name });
    }
  }
  await client.close();
}

async function feedback() {
  const client = service();
  await client.open();
  const opened = await client.getFeedbackReceiver();
  const receiver = opened.message || opened.result || opened;
  receiver.on('errorReceived', (error) => say({ error: String(error) }));
  receiver.on('message', (message) => {
    for (const record of JSON.parse(message.getData().toString())) say(record);
    receiver.complete(message, () => {});
  });
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) void line;
  await client.close();
}

async function receive() {
  const { Client } = require('azure-iot-device');
  const transports = {
    mqtt: () => require('azure-iot-device-mqtt').Mqtt,
    'mqtt-ws': () => require('azure-iot-device-mqtt').MqttWs,
    http: () => require('azure-iot-device-http').Http,
  };
  const client = Client.fromConnectionString(process.env.DEVICE_STRING, transports[transport]());
  await client.setOptions({
    ca: process.env.CA,
    http: { receivePolicy: { interval: 1 } },
    // Longer than any test moves the clock.
    keepalive: 1740,
  });
  client.on('error', (error) => say({ error: String(error) }));
  await client.open();
  client.on('message', async (message) => {
    const properties = {};
    for (let index = 0; index < message.properties.count(); index += 1) {
      const { key, value } = message.properties.getItem(index);
      properties[key] = value;
    }
    const { messageId, correlationId, userId, contentType, contentEncoding } = message;
    await client.complete(message);
    say({
      body: Buffer.from(message.data).toString('base64'),
      messageId,
      correlationId,
      userId: userId === undefined ? undefined : userId.toString(),
      contentType,
      contentEncoding,
      properties,
    });
  });
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) void line;
  await client.close();
}

({ send, feedback, receive })[role]().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
