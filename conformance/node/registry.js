'use strict';
// The device registry through azure-iothub.

const assert = require('node:assert/strict');
const { randomUUID } = require('node:crypto');
const { Registry } = require('azure-iothub');

const registry = Registry.fromConnectionString(process.env.SERVICE_STRING);

async function main() {
  const deviceId = `reg-${randomUUID().slice(0, 8)}`;
  const created = (await registry.create({ deviceId })).responseBody;
  const keys = created.authentication.symmetricKey;
  assert.equal(Buffer.from(keys.primaryKey, 'base64').length, 32);
  assert.notEqual(keys.primaryKey, keys.secondaryKey);
  assert.equal(created.status, 'enabled');

  await assert.rejects(registry.create({ deviceId }), { name: 'DeviceAlreadyExistsError' });
  const read = (await registry.get(deviceId)).responseBody;
  assert.equal(read.etag, created.etag);

  const updated = (
    await registry.update({ ...read, status: 'disabled', statusReason: 'test' })
  ).responseBody;
  assert.equal(updated.status, 'disabled');
  assert.notEqual(updated.etag, created.etag);
  assert.deepEqual(updated.authentication.symmetricKey, keys);

  assert.ok((await registry.list()).responseBody.some((device) => device.deviceId === deviceId));
  await registry.delete(deviceId);
  await assert.rejects(registry.get(deviceId), { name: 'DeviceNotFoundError' });

  const many = Array.from({ length: 10 }, (_, n) => ({ deviceId: `${deviceId}-${n}` }));
  const before = (await registry.getRegistryStatistics()).responseBody;
  assert.equal((await registry.addDevices(many)).responseBody.isSuccessful, true);
  await assert.rejects(registry.addDevices(many), { name: 'ArgumentError' });
  const after = (await registry.getRegistryStatistics()).responseBody;
  assert.equal(after.totalDeviceCount - before.totalDeviceCount, 10);
  const stored = await Promise.all(many.map(async ({ deviceId: id }) => (await registry.get(id)).responseBody));
  const changed = stored.map((device) => ({ ...device, status: 'disabled' }));
  assert.equal((await registry.updateDevices(changed, true)).responseBody.isSuccessful, true);
  // The etags are old now, so a conditional update is refused and a forced removal is not.
  await assert.rejects(registry.updateDevices(stored, false), { name: 'ArgumentError' });
  assert.equal((await registry.removeDevices(stored, true)).responseBody.isSuccessful, true);
  assert.deepEqual((await registry.getRegistryStatistics()).responseBody, before);

  const wrong = Registry.fromConnectionString(
    process.env.SERVICE_STRING.replace(/SharedAccessKey=.*/, 'SharedAccessKey=d3Jvbmc='),
  );
  await assert.rejects(wrong.get(deviceId), { name: 'UnauthorizedError' });
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
