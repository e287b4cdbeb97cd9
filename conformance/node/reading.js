'use strict';
// Reads what the hub stored, through the unmodified Event Hubs SDK.

const { EventHubConsumerClient, earliestEventPosition } = require('@azure/event-hubs');

const READ_MILLIS_MAX = 60_000;

function consumer(group = '$Default', ...rest) {
  return new EventHubConsumerClient(group, process.env.EVENT_HUB_STRING, ...rest);
}

// The first `count` events that a device sent, in the order read.
async function readFrom(deviceId, count, position = earliestEventPosition, client = consumer()) {
  const events = [];
  let subscription;
  await new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`only ${events.length} of ${count} events came`)),
      READ_MILLIS_MAX,
    );
    subscription = client.subscribe(
      {
        processEvents: async (batch) => {
          for (const event of batch) {
            if (event.systemProperties['iothub-connection-device-id'] === deviceId) events.push(event);
          }
          if (events.length >= count) {
            clearTimeout(timer);
            resolve();
          }
        },
        processError: async (error) => {
          clearTimeout(timer);
          reject(error);
        },
      },
      // The body as its bytes, also where it happens to be JSON.
      { startPosition: position, skipParsingBodyAsJson: true },
    );
  });
  await subscription.close();
  await client.close();
  return events;
}

module.exports = { READ_MILLIS_MAX, consumer, readFrom };
