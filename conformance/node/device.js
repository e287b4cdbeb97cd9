'use strict';
// One device or module through the unmodified Node.js device SDK, driven by lines of JSON.
//
//   node device.js mqtt|mqtt-ws|amqp|amqp-ws|http      CA
//
// A line in is {"what": ...}; a line out answers it, {"done": true} or {"error": NAME, "message": TEXT}:
//
//   open     connectionString, token or x509 ({host, deviceId, cert, key}); isModule; options for setOptions
//   listen   to messages, each of which becomes a line {"came": MESSAGE}
//   reopen   after a line {"gone": TEXT}, by which the library says that it has given up; listens again
//   poll     over HTTP, for the next message; only the message answers, and nothing when there is none
//   send     body (base64), properties
//   batch    bodies
//   complete, abandon, reject      the message with the number
//   token    the application's next token
//   options  for setOptions
//
// Prints {"ready": true} first and ends when its standard input closes.

const https = require('node:https');
const readline = require('node:readline');
const { Client, Message, ModuleClient } = require('azure-iot-device');
const { shown } = require('./shown');

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

function transports() {
  // Only what is asked for: each takes a while to load.
  switch (process.argv[2]) {
    case 'mqtt':
      return require('azure-iot-device-mqtt').Mqtt;
    case 'mqtt-ws':
      return require('azure-iot-device-mqtt').MqttWs;
    case 'amqp':
      return require('azure-iot-device-amqp').Amqp;
    case 'amqp-ws':
      return require('azure-iot-device-amqp').AmqpWs;
    case 'http':
      return require('azure-iot-device-http').Http;
    default:
      throw new Error(`no transport is called ${process.argv[2]}`);
  }
}

const Transport = transports();
const held = [];
let client;
// The HTTP transport asks for a message when it is told to, which only the transport itself can be.
let transport;

function Kept(authentication) {
  transport = new Transport(authentication);
  return transport;
}

// Every call over HTTP needs all of it: the SDK keeps the last call's alone, and answers none without a policy.
function settings(options) {
  const all = { ca: process.env.CA, ...options };
  if (process.argv[2] !== 'http') return all;
  // One message for each time that it is told to ask, and a connection for each request: one that is kept may
  // end as it is used, which moving the hub's clock makes likely.
  const receivePolicy = { manualPolling: true, drain: false };
  return { ...all, http: { receivePolicy, agent: new https.Agent({ keepAlive: false }) } };
}

const actions = {
  async open({ connectionString, token, x509, isModule, options }) {
    const Kind = isModule ? ModuleClient : Client;
    if (connectionString) client = Kind.fromConnectionString(connectionString, Kept);
    else if (token) client = Kind.fromSharedAccessSignature(token, Kept);
    else client = Kind.fromConnectionString(`HostName=${x509.host};DeviceId=${x509.deviceId};x509=true`, Kept);
    client.on('error', (error) => say({ broken: String(error) }));
    client.on('disconnect', (result) => say({ gone: String(result.transportObj) }));
    const { cert, key } = x509 || {};
    await client.setOptions(settings({ ...options, ...(x509 && { cert, key }) }));
    await client.open();
  },

  // What an application does that is told of a disconnect.
  async reopen() {
    client.removeAllListeners('message');
    await client.open();
    actions.listen();
  },

  listen() {
    client.on('message', (message) => {
      held.push(message);
      say({ came: { number: held.length - 1, ...shown(message) } });
    });
  },

  poll() {
    transport.receive();
  },

  async send({ body, properties }) {
    await client.sendEvent(message(body, properties));
  },

  async batch({ bodies }) {
    await client.sendEventBatch(bodies.map((body) => message(body)));
  },

  complete: ({ number }) => client.complete(held[number]),
  abandon: ({ number }) => client.abandon(held[number]),
  reject: ({ number }) => client.reject(held[number]),

  token: ({ token }) =>
    new Promise((resolve, reject) => {
      client.updateSharedAccessSignature(token, (error) => (error ? reject(error) : resolve()));
    }),

  options: ({ options }) => client.setOptions(settings(options)),
};

function message(body, properties) {
  const made = new Message(Buffer.from(body, 'base64'));
  for (const [name, value] of Object.entries(properties || {})) made.properties.add(name, value);
  return made;
}

async function main() {
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { what, ...how } = JSON.parse(line);
    try {
      await actions[what](how);
      if (what !== 'poll') say({ done: true });
    } catch (error) {
      say({ error: error.name, message: error.message });
    }
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
