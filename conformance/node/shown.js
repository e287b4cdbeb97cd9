'use strict';
// How the scripts here print a message to a device.

// Every member that the SDK's message has, whichever of them the transport fills.
function shown(message) {
  const { messageId, correlationId, to, expiryTimeUtc, ack } = message;
  const { userId, contentType, contentEncoding, lockToken } = message;
  return {
    body: Buffer.from(message.data).toString('base64'),
    messageId,
    correlationId,
    to,
    expiryTimeUtc,
    ack,
    userId,
    contentType,
    contentEncoding,
    lockToken,
    properties: Object.fromEntries(message.properties.propertyList.map(({ key, value }) => [key, value])),
  };
}

module.exports = { shown };
