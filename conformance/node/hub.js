'use strict';
// Starts, stops and asks a hub through its command line, as a user would.

const { spawn, execFile } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const { promisify } = require('node:util');
const { setTimeout: pause } = require('node:timers/promises');

const ROOT = path.resolve(__dirname, '../..');
const BINARY = process.env.FIELDPOST_BIN || path.join(ROOT, 'target/release/fieldpost');
const START_MILLIS_MAX = 30_000;

let hubs = 0;

// The SDKs have their ports compiled in, so every hub needs an address of its own: the process id
// keeps runs apart, the counter keeps the hubs of a run apart.
function nextAddress() {
  hubs += 1;
  return `127.${128 + (process.pid % 64)}.${Math.floor(process.pid / 64) % 256}.${hubs}`;
}

class Hub {
  constructor() {
    this.folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fieldpost-node-'));
    this.data = path.join(this.folder, 'data');
    this.address = nextAddress();
    this.logPath = path.join(this.folder, 'hub.log');
  }

  get ca() {
    return fs.readFileSync(path.join(this.data, 'ca.pem'), 'utf8');
  }

  async start() {
    const listeners = ['mqtts', 'amqps', 'https', 'amqp', 'admin'];
    const log = fs.openSync(this.logPath, 'a');
    this.process = spawn(
      BINARY,
      ['serve', '--test-mode', '--data', this.data, '--host-name', this.address].concat(
        listeners.flatMap((name) => ['--set', `listeners.${name}.address=${this.address}`]),
      ),
      { stdio: ['ignore', log, log] },
    );
    fs.closeSync(log);
    const deadline = Date.now() + START_MILLIS_MAX;
    while (!(await this.isReady())) {
      if (this.process.exitCode !== null || Date.now() > deadline) {
        throw new Error(`the hub did not start:\n${this.log()}`);
      }
      await pause(20);
    }
  }

  async isReady() {
    if (!fs.existsSync(path.join(this.data, 'endpoints.json'))) return false;
    return new Promise((resolve) => {
      http
        .get({ host: this.address, port: 9640, path: '/health/ready' }, (answer) => {
          answer.resume();
          resolve(answer.statusCode === 200);
        })
        .on('error', () => resolve(false));
    });
  }

  async stop() {
    const ended = once(this.process, 'exit');
    this.process.kill('SIGTERM');
    const [code] = await ended;
    if (code !== 0) throw new Error(`the hub ended with ${code}:\n${this.log()}`);
  }

  async remove() {
    await this.stop();
    fs.rmSync(this.folder, { recursive: true });
  }

  log() {
    return fs.readFileSync(this.logPath, 'utf8');
  }

  async run(...args) {
    const { stdout } = await promisify(execFile)(BINARY, [...args, '--data', this.data]);
    return stdout.trim();
  }

  async createDevice(id) {
    await this.run('device', 'create', id);
    return { id, connectionString: await this.run('connection-string', '--device', id) };
  }

  serviceString(policy = 'iothubowner') {
    return this.run('connection-string', '--policy', policy);
  }

  eventHubString(policy = 'service') {
    return this.run('connection-string', '--event-hub', '--policy', policy);
  }
}

// The service SDKs take the CA from NODE_EXTRA_CA_CERTS alone, which Node reads when it starts: the
// tests that need it run in a process started for them.
async function inTrustingProcess(hub, script, environment = {}) {
  const child = spawn(process.execPath, [path.join(__dirname, script)], {
    env: {
      ...process.env,
      NODE_TEST_CONTEXT: '',
      NODE_EXTRA_CA_CERTS: path.join(hub.data, 'ca.pem'),
      HUB_ADDRESS: hub.address,
      SERVICE_STRING: await hub.serviceString(),
      EVENT_HUB_STRING: await hub.eventHubString(),
      ...environment,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout.on('data', (piece) => (output += piece));
  child.stderr.on('data', (piece) => (output += piece));
  const [code] = await once(child, 'exit');
  if (code !== 0) throw new Error(`${script} failed:\n${output}\n${hub.log().slice(-4000)}`);
  return output;
}

module.exports = { Hub, inTrustingProcess };
