// Starts a server and a scripted model when the environment names none, then runs the suite against them.

import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, chmodSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const children = [];

function binary() {
  if (process.env.SELFSAME_BIN) return process.env.SELFSAME_BIN;
  for (const profile of ['release', 'debug']) {
    const candidate = resolve(here, '../../../target', profile, 'selfsame');
    if (existsSync(candidate)) return candidate;
  }
  throw new Error('no server: build it (`cargo build`), or set SELFSAME_BIN or SELFSAME_URL');
}

function freePort() {
  return new Promise((done, fail) => {
    const listener = createServer().on('error', fail);
    listener.listen(0, '127.0.0.1', () => {
      const { port } = listener.address();
      listener.close(() => done(port));
    });
  });
}

async function ready(url, log) {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const status = await fetch(url).then((response) => response.status, () => 0);
    if (status === 200) return;
    if (Date.now() > deadline || children.some((child) => child.exitCode !== null)) {
      throw new Error(`${url} never became ready:\n${readFileSync(log, 'utf8').slice(-4000)}`);
    }
    await new Promise((done) => setTimeout(done, 20));
  }
}

async function start() {
  const program = binary();
  const directory = mkdtempSync(join(tmpdir(), 'selfsame-test-'));
  chmodSync(directory, 0o755);
  const [port, mockPort] = [await freePort(), await freePort()];
  const mock = `http://127.0.0.1:${mockPort}`;
  const url = `http://127.0.0.1:${port}`;
  const environment = {
    ...process.env,
    SELFSAME__SERVER__LISTEN: `127.0.0.1:${port}`,
    SELFSAME__DATA_DIR: join(directory, 'data'),
    SELFSAME__MODEL__BASE_URL: mock,
    SELFSAME__MODEL__API_KEY: 'scripted',
    SELFSAME__FILES__DOWNLOAD_UPLOADS: 'true',
    SELFSAME__WEBHOOKS__ALLOW_HTTP: 'true',
    SELFSAME__WEBHOOKS__ALLOWED_RANGES: '["127.0.0.1/32"]',
    SELFSAME__SANDBOX__BACKEND: process.env.SELFSAME_TEST_BACKEND ?? 'docker',
  };
  const run = (name, ...given) => {
    const log = join(directory, `${name}.log`);
    const output = openSync(log, 'w');
    children.push(spawn(program, given, { cwd: directory, env: environment, stdio: ['ignore', output, output] }));
    return log;
  };
  await ready(`${mock}/_mock/gates`, run('mock', 'mock', '--listen', `127.0.0.1:${mockPort}`));
  await ready(`${url}/readyz`, run('serve', 'serve'));
  const key = (scope) =>
    execFileSync(program, ['keys', 'create', '--name', 'tests', '--workspace', 'default', '--scope', scope], {
      cwd: directory,
      env: environment,
      encoding: 'utf8',
    }).trim();
  Object.assign(process.env, {
    SELFSAME_URL: url,
    SELFSAME_KEY: key('standard'),
    SELFSAME_ADMIN_KEY: key('admin'),
    SELFSAME_MOCK_URL: mock,
  });
  return directory;
}

// Those of a server whose database goes, too: nobody else would know of them.
function removeSandboxes(log) {
  const deployment = existsSync(log) && /deployment\.id=([0-9a-f-]+)/.exec(readFileSync(log, 'utf8'))?.[1];
  if (!deployment || (process.env.SELFSAME_TEST_BACKEND ?? 'docker') !== 'docker') return;
  const label = `label=dev.selfsame.deployment=${deployment}`;
  const ids = execFileSync('docker', ['ps', '-aq', '--filter', label], { encoding: 'utf8' }).split('\n').filter(Boolean);
  if (ids.length) execFileSync('docker', ['rm', '-f', ...ids], { stdio: 'ignore' });
}

async function stop(directory) {
  for (const child of children.reverse()) {
    if (child.exitCode !== null) continue;
    const gone = new Promise((done) => child.once('exit', done));
    child.kill('SIGTERM');
    const late = setTimeout(() => child.kill('SIGKILL'), 30_000);
    await gone;
    clearTimeout(late);
  }
  if (directory) removeSandboxes(join(directory, 'serve.log'));
  if (directory && !process.env.SELFSAME_KEEP) rmSync(directory, { recursive: true, force: true });
}

let directory;
let code = 1;
try {
  if (!process.env.SELFSAME_URL) directory = await start();
  const suite = spawn(process.execPath, ['--test', ...process.argv.slice(2), join(here, 'suite.test.mjs')], { stdio: 'inherit' });
  code = await new Promise((done) => suite.once('exit', (status) => done(status ?? 1)));
} finally {
  await stop(directory);
}
process.exit(code);
