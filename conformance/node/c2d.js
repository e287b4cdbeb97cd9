'use strict';
// Messages to devices through the unmodified Node.js SDKs, driven by lines of JSON.
//
//   node c2d.js send amqp|amqp-ws       SERVICE_STRING; a line in is a message, a line out its fate
//   node c2d.js feedback amqp|amqp-ws   SERVICE_STRING; a line out is a feedback record
//   node c2d.js receive mqtt|mqtt-ws    DEVICE_STRING, CA; a line out is a message, completed
//   node c2d.js poll http               DEVICE_STRING, CA; a line in is something to do: "poll", which a
//                                       message answers if there is one, or complete, reject or abandon
//                                       the message of a "lock", which its outcome answers
//
// Prints {"ready":true} first and ends when its standard input closes. The service SDK takes its trust
// from NODE_EXTRA_CA_CERTS.

const readline = require('node:readline');
const { shown } = require('./shown');

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
    const { contentType } = message;
    for (const record of JSON.parse(message.getData().toString())) say({ contentType, record });
    receiver.complete(message, () => {});
  });
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) void line;
  await client.close();
}

async function device(transport, options) {
  const { Client } = require('azure-iot-device');
  const client = Client.fromConnectionString(process.env.DEVICE_STRING, transport);
  await client.setOptions({ ca: process.env.CA, ...options });
  client.on('error', (error) => say({ error: String(error) }));
  await client.open();
  return client;
}

async function receive() {
  const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
  // Longer than any test moves the clock.
  const client = await device({ mqtt: Mqtt, 'mqtt-ws': MqttWs }[transport], { keepalive: 1740 });
  client.on('message', async (message) => {
    await client.complete(message);
    say(shown(message));
  });
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) void line;
  await client.close();
}

async function poll() {
  const { Http } = require('azure-iot-device-http');
  let http;
  const client = await device(
    function (authentication) {
      http = new Http(authentication);
      return http;
    },
    // One message for each time that it is told to ask.
    { http: { receivePolicy: { manualPolling: true, drain: false } } },
  );
  // The client keeps these to itself.
  http.on('error', (error) => say({ error: error.message, status: error.response?.statusCode }));
  const held = new Map();
  client.on('message', (message) => {
    held.set(message.lockToken, message);
    say(shown(message));
  });
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { what, lock } = JSON.parse(line);
    if (what === 'poll') {
      http.receive();
      continue;
    }
    try {
      await client[what](held.get(lock));
      say({ settled: true });
    } catch (error) {
      say({ settled: false, error: error.message, status: error.response?.statusCode });
    }
  }
  await client.close();
}

({ send, feedback, receive, poll })[role]().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
