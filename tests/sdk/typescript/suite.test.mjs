// The official TypeScript client against the server: every method of the resources it offers.

import Anthropic, { toFile } from '@anthropic-ai/sdk';
import { accumulateManagedAgentsEvent } from '@anthropic-ai/sdk/lib/sessions/accumulate.mjs';
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { test } from 'node:test';

import { Mock, Tail, admin, all, client, covers, makeAgent, makeEnvironment, makeSession, say, tail, text, uncovered } from './support.mjs';

const TOOLSET = { type: 'agent_toolset_20260401' };
const CUSTOM = {
  type: 'custom',
  name: 'lookup',
  description: 'Looks something up.',
  input_schema: { type: 'object', properties: { key: { type: 'string' } } },
};
const { agents, environments, sessions } = client.beta;

covers(['models.list', 'models.retrieve', 'beta.models.list', 'beta.models.retrieve'], 'models', async () => {
  for (const models of [client.models, client.beta.models]) {
    const found = await all(models.list({ limit: 1 }));
    assert(found.length > 0);
    assert.equal((await models.retrieve(found[0].id)).id, found[0].id);
  }
});

covers(
  ['create', 'retrieve', 'update', 'list', 'delete', 'regenerateSigningSecret'].map((name) => `beta.organization.webhooks.${name}`),
  'webhook endpoints of the organization',
  async () => {
    const { webhooks } = admin.beta.organization;
    const url = 'https://hooks.example.com/organization';
    const made = await webhooks.create({ url, enabled_events: ['external_key.failed'], name: 'mine' });
    assert.match(made.signing_secret, /^whsec_/);
    const { signing_secret, ...rest } = made;
    assert.deepEqual(await webhooks.retrieve(made.id), rest);
    assert((await all(webhooks.list({ limit: 1 }))).some((each) => each.id === made.id));
    const off = await webhooks.update(made.id, { state: 'disabled' });
    assert.deepEqual([off.state, off.disabled_reason, off.name], ['disabled', '', 'mine']);
    assert.notEqual((await webhooks.regenerateSigningSecret(made.id)).signing_secret, signing_secret);
    assert.deepEqual(await webhooks.delete(made.id), { id: made.id, type: 'webhook_endpoint_deleted' });
    await assert.rejects(webhooks.retrieve(made.id), Anthropic.NotFoundError);
    await assert.rejects(client.beta.organization.webhooks.list(), Anthropic.PermissionDeniedError);
  },
);

covers(['beta.webhooks.unwrap', 'beta.webhooks.parseUnverified'], 'a webhook is verified', async () => {
  const received = [];
  const server = createServer((request, response) => {
    let payload = '';
    request.on('data', (chunk) => (payload += chunk));
    request.on('end', () => {
      received.push({ payload, headers: request.headers });
      response.writeHead(204).end();
      arrived();
    });
  });
  let arrived;
  const once = new Promise((done) => (arrived = done));
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const url = `http://127.0.0.1:${server.address().port}/hook`;
  const endpoint = await client.post('/v1/webhook_endpoints', { body: { url, enabled_events: ['session.status_idled'] } });
  try {
    const sent = await client.post(`/v1/webhook_endpoints/${endpoint.id}/test_event`);
    await once;
    const [{ payload, headers }] = received;
    const event = client.beta.webhooks.unwrap(payload, { headers, key: endpoint.signing_secret });
    assert.deepEqual([event.id, event.data.type], [sent.id, 'session.status_idled']);
    assert.deepEqual(client.beta.webhooks.parseUnverified(payload), event);
    const tampered = payload.replace('idled', 'ended');
    assert.throws(() => client.beta.webhooks.unwrap(tampered, { headers, key: endpoint.signing_secret }));
  } finally {
    await client.delete(`/v1/webhook_endpoints/${endpoint.id}`);
    server.close();
    server.closeAllConnections();
  }
});

covers(
  ['files', 'beta.files'].flatMap((root) => ['upload', 'retrieveMetadata', 'list', 'download', 'delete'].map((name) => `${root}.${name}`)),
  'files in both generations of answers',
  async () => {
    for (const [files, params] of [[client.files, {}], [client.beta.files, {}], [client.beta.files, { betas: ['files-api-2025-04-14'] }]]) {
      const content = Buffer.from('größe,b\r\n1,2\r\n\0');
      const file = await files.upload({ file: await toFile(content, 'data.csv', { type: 'text/csv' }), ...params });
      assert.deepEqual([file.filename, file.mime_type, file.size_bytes, file.downloadable], ['data.csv', 'text/csv', content.length, false]);
      assert.deepEqual(await files.retrieveMetadata(file.id, params), file);
      assert.deepEqual((await files.list({ limit: 1, ...params })).data, [file]);
      const response = await files.download(file.id, params);
      assert.deepEqual(Buffer.from(await response.arrayBuffer()), content);
      assert.equal((await files.delete(file.id, params)).id, file.id);
      await assert.rejects(files.retrieveMetadata(file.id, params), Anthropic.NotFoundError);
    }
  },
);

covers(
  ['skills', 'beta.skills'].flatMap((root) => [
    ...['create', 'retrieve', 'list', 'delete'].map((name) => `${root}.${name}`),
    ...['create', 'retrieve', 'list', 'delete'].map((name) => `${root}.versions.${name}`),
  ]).concat('beta.skills.versions.download'),
  'skills and their versions',
  async () => {
    for (const skills of [client.skills, client.beta.skills]) {
      const name = `skill-${randomUUID().slice(0, 12)}`;
      const upload = async (description) => [
        await toFile(Buffer.from(`---\nname: ${name}\ndescription: ${description}\n---\n`), `${name}/SKILL.md`),
        await toFile(Buffer.from('#!/bin/sh\n'), `${name}/scripts/run.sh`),
      ];
      const skill = await skills.create({ files: await upload('First.'), display_name: 'My skill' });
      assert.deepEqual([skill.type, skill.display_name, skill.source], ['skill', 'My skill', { type: 'custom' }]);
      assert.deepEqual(await skills.retrieve(skill.id), skill);
      assert.deepEqual((await skills.list({ limit: 1 })).data, [skill]);
      const { versions } = skills;
      const first = await versions.retrieve('latest', { skill_id: skill.id });
      assert.deepEqual([first.id, first.name, first.description], [skill.latest_version_id, name, 'First.']);
      const second = await versions.create(skill.id, { files: await upload('Second.') });
      assert.deepEqual(await all(versions.list(skill.id, { limit: 1 })), [second, first]);
      const response = await client.beta.skills.versions.download(second.id, { skill_id: skill.id });
      const content = Buffer.from(await response.arrayBuffer());
      assert.equal(content.subarray(0, 4).toString('latin1'), 'PK\x03\x04');
      assert(content.includes(`${name}/scripts/run.sh`));
      const gone = await versions.delete(second.id, { skill_id: skill.id });
      assert.deepEqual(gone, { id: second.id, type: 'skill_version_deleted' });
      assert.deepEqual(await skills.delete(skill.id), { id: skill.id, type: 'skill_deleted' });
      await assert.rejects(skills.retrieve(skill.id), Anthropic.NotFoundError);
    }
  },
);

covers(
  ['beta.agents.create', 'beta.agents.retrieve', 'beta.agents.update', 'beta.agents.list', 'beta.agents.archive', 'beta.agents.versions.list'],
  'agents and their versions',
  async () => {
    const mock = new Mock();
    const agent = await makeAgent(mock, { tools: [TOOLSET, CUSTOM], metadata: { a: '1' }, system: 's' });
    assert.deepEqual(await agents.retrieve(agent.id), agent);
    const second = await agents.update(agent.id, { version: 1, name: 'renamed', metadata: { a: null, b: '2' }, system: null });
    assert.deepEqual([second.version, second.name, second.metadata, second.system], [2, 'renamed', { b: '2' }, null]);
    assert.deepEqual((await agents.retrieve(agent.id, { version: 1 })).name, agent.name);
    assert.deepEqual((await all(agents.versions.list(agent.id, { limit: 1 }))).map((each) => each.version), [2, 1]);
    await assert.rejects(agents.update(agent.id, { version: 1, name: 'again' }), Anthropic.ConflictError);
    await makeAgent(mock);
    const listed = async (params) => (await all(agents.list({ limit: 1, 'created_at[gte]': agent.created_at, ...params }))).map((each) => each.id);
    assert((await listed()).includes(agent.id));
    const archived = await agents.archive(agent.id);
    assert(archived.archived_at);
    assert(!(await listed()).includes(agent.id));
    assert((await listed({ include_archived: true })).includes(agent.id));
  },
);

covers(
  ['create', 'retrieve', 'update', 'list', 'archive', 'delete'].map((name) => `beta.environments.${name}`),
  'environments',
  async () => {
    const name = `typescript ${randomUUID()}`;
    const environment = await environments.create({ name, metadata: { a: '1' } });
    assert.equal(environment.config.type, 'cloud');
    assert.deepEqual(await environments.retrieve(environment.id), environment);
    const changed = await environments.update(environment.id, {
      description: 'd',
      metadata: { a: null },
      config: { type: 'cloud', networking: { type: 'limited', allowed_hosts: ['example.com'] } },
    });
    assert.deepEqual([changed.description, changed.metadata, changed.config.networking.allowed_hosts], ['d', {}, ['example.com']]);
    await assert.rejects(environments.create({ name }), Anthropic.ConflictError);
    await environments.archive(environment.id);
    const ids = async (params) => (await all(environments.list({ limit: 50, ...params }))).map((each) => each.id);
    assert(!(await ids()).includes(environment.id));
    assert((await ids({ include_archived: true })).includes(environment.id));
    assert.deepEqual(await environments.delete(environment.id), { id: environment.id, type: 'environment_deleted' });
    await assert.rejects(environments.retrieve(environment.id), Anthropic.NotFoundError);
  },
);

covers(
  ['create', 'retrieve', 'update', 'list', 'archive', 'delete'].map((name) => `beta.sessions.${name}`),
  'sessions, and their pages in both directions',
  async () => {
    const mock = new Mock();
    const agent = await makeAgent(mock);
    const environment_id = await makeEnvironment();
    const made = [];
    for (let number = 0; number < 5; number += 1) {
      made.push(await sessions.create({ agent: agent.id, environment_id, title: `${number}` }));
    }
    const newest = made.map((session) => session.id).reverse();
    assert.deepEqual((await all(sessions.list({ agent_id: agent.id, limit: 2 }))).map((each) => each.id), newest);
    const pages = [await sessions.list({ agent_id: agent.id, limit: 2 })];
    while (pages.at(-1).hasNextPage()) pages.push(await pages.at(-1).getNextPage());
    assert.deepEqual(pages.map((page) => page.data.length), [2, 2, 1]);
    const back = await sessions.list({ agent_id: agent.id, limit: 2, page: pages[2].prev_page });
    assert.deepEqual(back.data.map((each) => each.id), newest.slice(2, 4));
    const first = await sessions.list({ agent_id: agent.id, limit: 2, page: back.prev_page });
    assert.deepEqual(first.data.map((each) => each.id), newest.slice(0, 2));
    assert.equal(first.prev_page, null);
    const [session] = made;
    const changed = await sessions.update(session.id, { title: null, metadata: { a: 'b' } });
    assert.deepEqual([changed.title, changed.metadata], [null, { a: 'b' }]);
    assert.equal((await sessions.archive(session.id)).status, 'terminated');
    assert((await sessions.retrieve(session.id)).archived_at);
    assert.deepEqual((await all(sessions.list({ agent_id: agent.id, statuses: ['terminated'], include_archived: true }))).map((each) => each.id), [session.id]);
    assert.deepEqual(await sessions.delete(session.id), { id: session.id, type: 'session_deleted' });
    await assert.rejects(sessions.retrieve(session.id), Anthropic.NotFoundError);
  },
);

covers(['beta.sessions.events.send', 'beta.sessions.events.list', 'beta.sessions.events.stream'], 'a turn on the stream and in the list', async () => {
  const mock = new Mock();
  await mock.answer('hello');
  const session = await makeSession(mock);
  const stream = await tail(session);
  const sent = await say(session, 'hi');
  await stream.idle('end_turn');
  await stream.close();
  const listed = await all(sessions.events.list(session.id, { limit: 2 }));
  const forms = stream.records.filter((event) => event.id === sent.data[0].id).map((event) => event.processed_at === null);
  assert.deepEqual(forms, [true, false]);
  const once = new Map(stream.records.map((event) => [event.id, event]));
  assert.deepEqual(new Set(listed.map((event) => event.id)), new Set(once.keys()));
  for (const event of listed) assert.deepEqual(event, once.get(event.id));
  assert.deepEqual(listed.map((event) => event.type), [
    'session.status_running', 'session.thread_status_running', 'user.message', 'span.model_request_start', 'agent.message',
    'span.model_request_end', 'session.thread_status_idle', 'session.usage', 'session.status_idle',
  ]); // prettier-ignore
  const messages = await all(sessions.events.list(session.id, { types: ['agent.message'], order: 'desc' }));
  assert.deepEqual(messages.map((event) => event.content), [[{ type: 'text', text: 'hello' }]]);
});

covers(
  ['create', 'retrieve', 'update', 'list', 'delete', 'archive'].flatMap((name) => [`beta.vaults.${name}`, `beta.vaults.credentials.${name}`]).concat('beta.vaults.credentials.mcpOAuthValidate'),
  'vaults and their credentials',
  async () => {
    const { vaults } = client.beta;
    const { credentials } = vaults;
    const vault = await vaults.create({ display_name: 'Alice', metadata: { user: 'u1' } });
    assert.deepEqual(await vaults.retrieve(vault.id), vault);
    assert.deepEqual((await vaults.list({ limit: 1 })).data, [vault]);
    const renamed = await vaults.update(vault.id, { display_name: 'Bob', metadata: { user: null, a: '1' } });
    assert.deepEqual([renamed.display_name, renamed.metadata], ['Bob', { a: '1' }]);

    const secret = `s3cret-${randomUUID()}`;
    const mcp_server_url = 'http://127.0.0.1:1/mcp';
    for (const [auth, rotation] of [
      [{ type: 'mcp_oauth', mcp_server_url, access_token: secret }, { type: 'mcp_oauth', access_token: `${secret}2` }],
      [{ type: 'static_bearer', mcp_server_url: 'https://a.example/mcp', token: secret }, { type: 'static_bearer', token: `${secret}2` }],
      [
        { type: 'environment_variable', secret_name: 'KEY', secret_value: secret, networking: { type: 'unrestricted' } },
        { type: 'environment_variable', injection_location: { body: false } },
      ],
    ]) {
      const credential = await credentials.create(vault.id, { auth });
      assert.deepEqual([credential.type, credential.vault_id, credential.display_name], ['vault_credential', vault.id, null]);
      const where = { vault_id: vault.id };
      assert.deepEqual(await credentials.retrieve(credential.id, where), credential);
      assert.deepEqual((await all(credentials.list(vault.id, { limit: 1 })))[0], credential);
      await assert.rejects(credentials.create(vault.id, { auth }), Anthropic.ConflictError);
      const updated = await credentials.update(credential.id, { ...where, auth: rotation, display_name: 'd' });
      if (auth.type === 'mcp_oauth') {
        const found = await credentials.mcpOAuthValidate(credential.id, where);
        assert.deepEqual([found.type, found.status, found.mcp_probe.method], ['vault_credential_validation', 'unknown', 'initialize']);
      }
      const archived = await credentials.archive(credential.id, where);
      assert(archived.archived_at);
      assert(!JSON.stringify([credential, updated, archived]).includes(secret));
      assert.deepEqual(await credentials.delete(credential.id, where), { id: credential.id, type: 'vault_credential_deleted' });
      await assert.rejects(credentials.retrieve(credential.id, where), Anthropic.NotFoundError);
    }
    assert((await vaults.archive(vault.id)).archived_at);
    assert.deepEqual(await vaults.delete(vault.id), { id: vault.id, type: 'vault_deleted' });
    await assert.rejects(vaults.retrieve(vault.id), Anthropic.NotFoundError);
  },
);

test('an outcome that is revised once', async () => {
  const mock = new Mock();
  const met = { criterion: 'Is short', finding: 'It is.', met: true };
  const open = { criterion: 'Is short', finding: 'It is long.', met: false, gap: 'Too long', change: 'Cut it' };
  for (const [result, criterion] of [['needs_revision', open], ['satisfied', met]]) {
    const input = { criteria: [criterion], result, summary: 'Looked at.' };
    await mock.rules({ when: { forced: 'submit_verdict' }, times: 1, answer: [{ tool: { name: 'submit_verdict', input } }] });
  }
  await mock.answer('a poem');
  const session = await makeSession(mock);
  const stream = await tail(session);
  const rubric = { type: 'text', content: '- Is short' };
  const { data } = await sessions.events.send(session.id, { events: [{ type: 'user.define_outcome', description: 'Write a poem.', rubric }] });
  assert.deepEqual([data[0].type, data[0].rubric, data[0].max_iterations], ['user.define_outcome', rubric, 3]);
  await stream.idle('end_turn');
  await stream.close();
  const spans = stream.records.filter((event) => event.type.startsWith('span.outcome_evaluation_') && !event.type.endsWith('ongoing'));
  assert.deepEqual(spans.map((event) => [event.type.split('_').at(-1), event.iteration, event.result]), [
    ['start', 0, undefined], ['end', 0, 'needs_revision'], ['start', 1, undefined], ['end', 1, 'satisfied'],
  ]); // prettier-ignore
  assert(spans.every((event) => event.outcome_id === data[0].outcome_id));
  const [evaluation] = (await sessions.retrieve(session.id)).outcome_evaluations;
  assert.deepEqual([evaluation.outcome_id, evaluation.result, evaluation.iteration], [data[0].outcome_id, 'satisfied', 1]);
  assert.match(evaluation.explanation, /\[met\] Is short: It is\./);
});

test('a stream opened after sending to an instant model', async () => {
  const mock = new Mock();
  await mock.answer('instant');
  const session = await makeSession(mock);
  await say(session, 'hi');
  const stream = await tail(session);
  await stream.idle('end_turn');
  assert.equal(stream.records.filter((event) => event.type === 'agent.message').length, 1);
  await stream.close();
});

test('deltas through the own accumulator of the SDK', async () => {
  const mock = new Mock();
  const gate = mock.gate();
  await mock.answer({ thinking: 'hm' }, { text: ['one ', 'two '] }, { gate }, { text: ['three'] });
  const session = await makeSession(mock);
  const stream = await tail(session, { event_deltas: ['agent.message', 'agent.thinking'] });
  await say(session, 'count');
  await stream.type('event_delta');
  await mock.release(gate);
  await stream.idle('end_turn');
  await stream.close();
  const snapshots = new Map();
  let checked = 0;
  for (const event of stream.records) {
    if (event.type === 'event_start') snapshots.set(event.event.id, accumulateManagedAgentsEvent(undefined, event));
    if (event.type === 'event_delta') snapshots.set(event.event_id, accumulateManagedAgentsEvent(snapshots.get(event.event_id), event));
    if (event.type === 'agent.message' && snapshots.has(event.id)) {
      const preview = snapshots.get(event.id).content.map((block) => block.text).join('');
      assert(event.content.map((block) => block.text).join('').startsWith(preview) && preview);
      checked += 1;
    }
  }
  assert(checked > 0);
});

covers(
  ['beta.sessions.threads.list', 'beta.sessions.threads.retrieve', 'beta.sessions.threads.archive', 'beta.sessions.threads.events.list', 'beta.sessions.threads.events.stream'],
  'the primary thread',
  async () => {
    const mock = new Mock();
    await mock.answer('ok');
    const session = await makeSession(mock);
    const { threads } = sessions;
    const [thread, ...more] = await all(threads.list(session.id));
    assert.equal(more.length, 0);
    const scope = { session_id: session.id };
    assert.deepEqual(await threads.retrieve(thread.id, scope), thread);
    const stream = new Tail(await threads.events.stream(thread.id, scope));
    await say(session, 'hi');
    await stream.type('session.thread_status_idle');
    await stream.close();
    const listed = await all(threads.events.list(thread.id, scope));
    assert(listed.some((event) => event.type === 'agent.message'));
    await assert.rejects(threads.archive(thread.id, scope), Anthropic.BadRequestError);
  },
);

test('child threads: listed, read, streamed and archived', async () => {
  const mock = new Mock();
  const gate = mock.gate();
  const create = (message) => ({ tool: { name: 'create_agent', input: { agent_name: 'worker', message } } });
  await mock.rules(
    { when: { system_contains: 'You work.' }, answer: [{ gate }, { text: 'Done.' }] },
    { when: { system_contains: 'You lead.', turn: 0 }, answer: [create('A'), create('B')] },
    { when: { system_contains: 'You lead.' }, answer: 'ok' },
  );
  const worker = await makeAgent(mock, { name: 'worker', system: 'You work.' });
  const session = await makeSession(mock, { system: 'You lead.', multiagent: { type: 'coordinator', agents: [worker.id] } });
  assert.deepEqual([session.agent.multiagent.type, session.agent.multiagent.agents[0].name], ['coordinator', 'worker']);
  const stream = await tail(session);
  await say(session, 'go');
  await mock.blocked(gate);
  await stream.wait((event) => event.type === 'session.thread_status_running' && event.agent_name === 'worker', 2);
  const { threads } = sessions;
  const scope = { session_id: session.id };
  const children = (await all(threads.list(session.id, { statuses: ['running'] }))).filter((thread) => thread.parent_thread_id);
  assert.equal(children.length, 2);
  const own = new Tail(await threads.events.stream(children[0].id, { ...scope, event_deltas: ['agent.message'] }));
  await assert.rejects(threads.archive(children[0].id, scope), Anthropic.BadRequestError);
  await mock.release(gate);
  await own.type('session.thread_status_idle');
  await own.close();
  assert(own.records.some((event) => event.type === 'agent.message'));
  await stream.wait((event) => event.type === 'agent.thread_message_received', 2);
  await stream.idle('end_turn');
  assert(!stream.records.some((event) => event.type === 'agent.message' && event.content[0].text === 'Done.'));
  await stream.close();
  const listed = await all(threads.events.list(children[0].id, scope));
  assert.equal(listed.filter((event) => event.type === 'agent.thread_message_sent').length, 1);
  const archived = await threads.archive(children[0].id, scope);
  assert.deepEqual([archived.status, typeof archived.archived_at], ['terminated', 'string']);
  assert.equal((await threads.retrieve(children[0].id, scope)).archived_at, archived.archived_at);
});

test('a session with tools in its sandbox', async () => {
  const mock = new Mock();
  const session = await makeSession(mock, { tools: [TOOLSET] });
  const stream = await tail(session);
  await say(session, '!write a.txt hello\n!then\n!bash cat a.txt\n!read a.txt\n!glob *.txt\n!grep hell a.txt');
  await stream.idle('end_turn');
  const results = stream.records.filter((event) => event.type === 'agent.tool_result');
  assert.equal(results.length, 5);
  for (const result of results) {
    assert(!result.is_error, JSON.stringify(result));
  }
  await stream.close();
});

test('confirmations', async () => {
  const mock = new Mock();
  const session = await makeSession(mock, { tools: [{ ...TOOLSET, default_config: { permission_policy: { type: 'always_ask' } } }] });
  const stream = await tail(session);
  await say(session, '!bash echo one\n!bash echo two');
  const { stop_reason } = await stream.idle('requires_action');
  const [first, second] = stop_reason.event_ids;
  await sessions.events.send(session.id, { events: [{ type: 'user.tool_confirmation', tool_use_id: first, result: 'allow' }] });
  assert.deepEqual((await stream.idle('requires_action', 2)).stop_reason.event_ids, [second]);
  await sessions.events.send(session.id, { events: [{ type: 'user.tool_confirmation', tool_use_id: second, result: 'deny', deny_message: 'no' }] });
  await stream.idle('end_turn');
  await stream.close();
});

test('an interrupt while the model streams', async () => {
  const mock = new Mock();
  await mock.answer({ text: ['half'] }, { hang: true });
  const session = await makeSession(mock);
  const stream = await tail(session, { event_deltas: ['agent.message'] });
  await say(session, 'hi');
  await stream.type('event_delta');
  await sessions.events.send(session.id, { events: [{ type: 'user.interrupt' }] });
  await stream.idle('end_turn');
  assert(!stream.records.some((event) => event.type === 'agent.message'));
  await stream.close();
});

covers(['beta.sessions.events.toolRunner'], 'the tool runner answers custom tools', async () => {
  const mock = new Mock();
  const session = await makeSession(mock, { tools: [CUSTOM] });
  await say(session, '!tool lookup {"key": "k"}');
  const asked = [];
  const lookup = {
    type: 'custom',
    name: 'lookup',
    description: CUSTOM.description,
    input_schema: CUSTOM.input_schema,
    parse: (input) => input,
    run: async (input) => {
      asked.push(input.key);
      return `value of ${input.key}`;
    },
  };
  const names = [];
  for await (const call of sessions.events.toolRunner(session.id, { tools: [lookup], maxIdleMs: 200 })) names.push(call.name);
  assert.deepEqual([names, asked], [['lookup'], ['k']]);
  const results = await all(sessions.events.list(session.id, { types: ['user.custom_tool_result'] }));
  assert.equal(results.length, 1);
});

test('errors are the right classes and carry the request id', async () => {
  await assert.rejects(sessions.retrieve(`sesn_01${'1'.repeat(22)}`), (error) => {
    assert(error instanceof Anthropic.NotFoundError);
    assert(error.requestID.startsWith('req_'));
    return true;
  });
  const stranger = client.withOptions({ apiKey: 'wrong' });
  await assert.rejects(stranger.beta.agents.list(), Anthropic.AuthenticationError);
  await assert.rejects(agents.create({ name: '', model: 'm' }), Anthropic.BadRequestError);
  await assert.rejects(sessions.events.send(`sesn_01${'1'.repeat(22)}`, { events: [text('x')] }), Anthropic.NotFoundError);
});

// Last, when the others have said and shown what they call.
test('every method has a test', () => {
  assert.deepEqual(uncovered(), []);
});
