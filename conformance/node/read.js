'use strict';
// Reads what a device sent and compares it with what is expected. Runs in a process of its own,
// because the SDK takes its trust from NODE_EXTRA_CA_CERTS.

const assert = require('node:assert/strict');
const { readFrom } = require('./reading');

async function main() {
  const expected = JSON.parse(process.env.EXPECTED);
  const events = await readFrom(process.env.DEVICE_ID, expected.length);
  const got = events.map((event) => ({
    body: event.body.toString('base64'),
    length: event.body.length,
    messageId: event.messageId,
    correlationId: event.correlationId,
    userId: textOf(event.systemProperties.userId),
    contentType: event.contentType,
    contentEncoding: event.getRawAmqpMessage().properties?.contentEncoding,
    expiry: event.getRawAmqpMessage().properties?.absoluteExpiryTime,
    properties: event.properties ?? {},
    auth: event.systemProperties['iothub-connection-auth-method'],
    sender: event.systemProperties['iothub-connection-device-id'],
  }));
  got.forEach((event, index) => {
    for (const [name, value] of Object.entries(expected[index])) {
      assert.deepEqual(event[name], value, `${name} of message ${index}`);
    }
  });
  assert.equal(got.length, expected.length);
}

// The SDK hands out binary system properties as a plain object of numbered bytes.
function textOf(bytes) {
  return bytes === undefined ? undefined : Buffer.from(Object.values(bytes)).toString();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
