'use strict';
// A Node.js device that lives through all kill rounds: sends numbers, prints each acknowledged one.
//
// Reads `connection string`, `CA file` from its arguments; ends when its standard input closes.

const fs = require('node:fs');
const { createRequire } = require('node:module');
const path = require('node:path');
// The packages are those of the conformance suite.
const load = createRequire(path.join(__dirname, '../node/package.json'));
const { Client, Message } = load('azure-iot-device');
const { Mqtt } = load('azure-iot-device-mqtt');

const [connectionString, caFile] = process.argv.slice(2);
const client = Client.fromConnectionString(connectionString, Mqtt);
client.on('error', (error) => console.error(`error: ${error}`));

let ended = false;
process.stdin.on('end', () => (ended = true)).resume();

async function main() {
  await client.setOptions({ ca: fs.readFileSync(caFile, 'utf8'), keepalive: 10 });
  await client.open();
  for (let number = 0; !ended; ) {
    try {
      // Resolves when the hub has acknowledged, however often the SDK had to connect for it.
      await client.sendEvent(new Message(String(number)));
    } catch (error) {
      console.error(`again ${number}: ${error}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
      continue;
    }
    console.log(number);
    number += 1;
  }
  await client.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
