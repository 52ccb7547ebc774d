// What the suite shares: the client, the scripted model, tails of streams, and the register of covered methods.

import Anthropic from '@anthropic-ai/sdk';
import { APIResource } from '@anthropic-ai/sdk/resource';
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';

const DEADLINE = 20_000;
const { SELFSAME_URL: url, SELFSAME_KEY: key, SELFSAME_ADMIN_KEY: adminKey, SELFSAME_MOCK_URL: mockUrl } = process.env;
assert(
  url && key && adminKey && mockUrl,
  'run `npm test`, or set SELFSAME_URL, SELFSAME_KEY, SELFSAME_ADMIN_KEY and SELFSAME_MOCK_URL',
);

export const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0, timeout: 60_000 });
// What only a key of scope `admin` may do.
export const admin = client.withOptions({ apiKey: adminKey });

const ROOTS = ['models', 'files', 'skills', 'beta.models', 'beta.agents', 'beta.environments', 'beta.files', 'beta.sessions', 'beta.skills', 'beta.vaults', 'beta.webhooks', 'beta.organization.webhooks'];
// Methods of work to come. Remove a line when its feature arrives; never add one.
const NOT_YET = new Set([
  ...['ack', 'heartbeat', 'list', 'poll', 'poller', 'retrieve', 'stats', 'stop', 'update', 'worker'].map((name) => `beta.environments.work.${name}`),
  ...['add', 'delete', 'list', 'retrieve', 'update'].map((name) => `beta.sessions.resources.${name}`),
]);
const covered = new Set();
const claimed = new Set();

const resolve = (path) => path.split('.').reduce((value, part) => value[part], client);

// Every public method of the SDK below the roots.
export function methods() {
  const found = new Set();
  const walk = (resource, path) => {
    for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(resource))) {
      if (name !== 'constructor' && !name.startsWith('_')) found.add(`${path}.${name}`);
    }
    for (const [name, value] of Object.entries(resource)) {
      if (value instanceof APIResource) walk(value, `${path}.${name}`);
    }
  };
  for (const root of ROOTS) walk(resolve(root), root);
  return found;
}

// A test that says which methods it covers. It fails when it does not call them.
export function covers(paths, title, body) {
  paths.forEach((path) => claimed.add(path));
  test(title, { timeout: 120_000 }, async (context) => {
    const called = new Set();
    const restore = paths.map((path) => {
      const cut = path.lastIndexOf('.');
      const prototype = Object.getPrototypeOf(resolve(path.slice(0, cut)));
      const name = path.slice(cut + 1);
      const original = prototype[name];
      prototype[name] = function (...given) {
        called.add(path);
        return original.apply(this, given);
      };
      return () => (prototype[name] = original);
    });
    try {
      await body(context);
    } finally {
      restore.forEach((undo) => undo());
    }
    for (const path of paths) {
      assert(called.has(path), `this test says that it covers ${path}, and never calls it`);
      covered.add(path);
    }
  });
}

export function uncovered() {
  const known = methods();
  for (const path of [...claimed, ...NOT_YET]) assert(known.has(path), `${path} is no method of the SDK`);
  for (const path of NOT_YET) assert(!claimed.has(path), `${path} has a test; remove the exception`);
  return [...known].filter((path) => !covered.has(path) && !NOT_YET.has(path));
}

export class Mock {
  model = `mock-${randomUUID()}`;

  async #call(method, path, body) {
    const response = await fetch(mockUrl + path, {
      method,
      headers: { 'content-type': 'application/json' },
      body: body && JSON.stringify(body),
    });
    assert(response.ok, `${path}: ${response.status}`);
    return response.json().catch(() => undefined);
  }

  rules(...rules) {
    return this.#call('POST', '/_mock/rules', rules.map((rule) => ({ ...rule, when: { model: this.model, ...rule.when } })));
  }

  answer(...steps) {
    return this.rules({ answer: steps.map((step) => (typeof step === 'string' ? { text: step } : step)) });
  }

  gate = () => `gate-${this.model}`;
  blocked = (gate) => this.#call('GET', `/_mock/gates/${gate}/wait?timeout_ms=${DEADLINE}`);
  release = (gate) => this.#call('POST', `/_mock/gates/${gate}/release`);
}

// Reads a stream in the background and waits with a deadline.
export class Tail {
  records = [];
  #wake = () => {};
  #done = false;
  #error;

  constructor(stream) {
    this.stream = stream;
    this.finished = (async () => {
      try {
        for await (const event of stream) {
          this.records.push(event);
          this.#wake();
        }
      } catch (error) {
        this.#error = error;
      } finally {
        this.#done = true;
        this.#wake();
      }
    })();
  }

  async wait(wanted, count = 1) {
    const deadline = Date.now() + DEADLINE;
    for (;;) {
      const found = this.records.filter(wanted);
      if (found.length >= count) return found[count - 1];
      const left = deadline - Date.now();
      const seen = this.records.map((event) => event.type).join(', ');
      if (this.#error) throw this.#error;
      assert(!this.#done, `the stream ended; seen ${seen}`);
      assert(left > 0, `the stream said nothing like it; seen ${seen}`);
      let timer;
      await Promise.race([
        new Promise((done) => (this.#wake = done)),
        new Promise((done) => (timer = setTimeout(done, left))),
      ]);
      clearTimeout(timer);
    }
  }

  type = (type, count) => this.wait((event) => event.type === type, count);
  idle = (reason, count) => this.wait((event) => event.type === 'session.status_idle' && event.stop_reason.type === reason, count);

  async close() {
    this.stream.controller.abort();
    await this.finished;
  }
}

export const tail = async (session, params) => new Tail(await client.beta.sessions.events.stream(session.id, params));

export const text = (value) => ({ type: 'user.message', content: [{ type: 'text', text: value }] });
export const say = (session, value) => client.beta.sessions.events.send(session.id, { events: [text(value)] });

let environment;
export async function makeEnvironment() {
  environment ??= client.beta.environments.create({ name: `typescript ${randomUUID()}` });
  return (await environment).id;
}

export const makeAgent = (mock, fields = {}) => client.beta.agents.create({ name: 'typescript', model: mock.model, ...fields });

export async function makeSession(mock, fields = {}) {
  const agent = await makeAgent(mock, fields);
  return client.beta.sessions.create({ agent: agent.id, environment_id: await makeEnvironment() });
}

export async function all(pages) {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
}
