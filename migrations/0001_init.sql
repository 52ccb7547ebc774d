-- The schema. Forward only; see ARCHITECTURE.md for the reasons behind its shape.
--
-- JSON that clients see (events, configurations) is kept as text: key order and bytes must not change.
-- Short structured values that only the server reads may be jsonb.

CREATE TABLE workspaces (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row for the whole deployment: what must be the same for every server on this database.
CREATE TABLE deployment (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Every credential that arrives as a bearer token, by the SHA-256 of the token.
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces,
    kind text NOT NULL CHECK (kind IN ('api', 'environment', 'work')),
    scope text NOT NULL CHECK (scope IN ('admin', 'standard', 'read_only')),
    name text NOT NULL,
    -- The first characters, to recognise a key by; useless as a key.
    hint text NOT NULL,
    hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_used_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE UNIQUE INDEX api_keys_hash_key ON api_keys (hash);
CREATE INDEX api_keys_workspace_idx ON api_keys (workspace_id, created_at);

-- Who did what to keys, secrets and deletions.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    workspace_id uuid,
    actor_key uuid,
    request_id text,
    action text NOT NULL,
    target text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_workspace_idx ON audit (workspace_id, id);

CREATE TABLE agents (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces,
    current_version integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Of the latest version, or of the archiving.
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    archived_at timestamptz
);
CREATE INDEX agents_list_idx ON agents (workspace_id, created_at DESC, id DESC);
CREATE INDEX agents_live_idx ON agents (workspace_id, created_at DESC, id DESC)
    WHERE archived_at IS NULL;

CREATE TABLE agent_versions (
    agent_id uuid NOT NULL REFERENCES agents,
    version integer NOT NULL,
    -- Everything versioned, normalised, as JSON text.
    config text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (agent_id, version)
);

CREATE TABLE environments (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces,
    name text NOT NULL,
    description text,
    config text NOT NULL,
    metadata text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    archived_at timestamptz,
    -- Hidden for good. The row stays for the sessions that were deleted but not purged yet.
    deleted_at timestamptz
);
CREATE UNIQUE INDEX environments_name_key ON environments (workspace_id, name)
    WHERE archived_at IS NULL AND deleted_at IS NULL;
CREATE INDEX environments_list_idx ON environments (workspace_id, created_at DESC, id DESC)
    WHERE deleted_at IS NULL;

-- What rarely changes of a session.
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces,
    agent_id uuid NOT NULL REFERENCES agents,
    agent_version integer NOT NULL,
    environment_id uuid NOT NULL REFERENCES environments,
    -- The resolved agent this session runs, as JSON text.
    agent text NOT NULL,
    -- The environment's configuration as it was when the session was created.
    environment text NOT NULL,
    title text,
    metadata text NOT NULL,
    created_by uuid,
    created_at timestamptz NOT NULL,
    archived_at timestamptz,
    -- Hidden at once; a background loop removes the rows in chunks.
    deleted_at timestamptz
);
CREATE INDEX sessions_list_idx ON sessions (workspace_id, created_at DESC, id DESC)
    WHERE deleted_at IS NULL;
CREATE INDEX sessions_live_idx ON sessions (workspace_id, created_at DESC, id DESC)
    WHERE deleted_at IS NULL AND archived_at IS NULL;
CREATE INDEX sessions_agent_idx ON sessions (agent_id, created_at DESC, id DESC)
    WHERE deleted_at IS NULL;
CREATE INDEX sessions_environment_idx ON sessions (environment_id) WHERE deleted_at IS NULL;
CREATE INDEX sessions_purge_idx ON sessions (deleted_at) WHERE deleted_at IS NOT NULL;

-- What changes with every step. Low fill factor and no index on what changes: updates stay in the page.
CREATE TABLE session_state (
    session_id uuid PRIMARY KEY REFERENCES sessions ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    status text NOT NULL CHECK (status IN ('idle', 'running', 'rescheduling', 'terminated')),
    updated_at timestamptz NOT NULL,
    last_seq bigint NOT NULL DEFAULT 0,
    last_processed_at timestamptz NOT NULL,
    -- Positions of inputs that are queued and not yet processed.
    queued bigint[] NOT NULL DEFAULT '{}',
    -- Usage, running time and outcome results: the parts of the session object that the engine writes.
    view text NOT NULL,
    -- The state machine's saved state; only the engine reads it.
    machine text NOT NULL,
    primary_thread uuid NOT NULL,
    -- The lease. Time is the database's; the epoch grows with every claim and fences every write.
    owner uuid,
    epoch bigint NOT NULL DEFAULT 0,
    -- The owner let go in the middle of something: what was in flight may have happened.
    unclean boolean NOT NULL DEFAULT false,
    -- There is work to do from this time on; null while the session waits for a client.
    wake_at timestamptz,
    -- Where the log stood before a client's latest input, and when that was: a stream opened shortly
    -- afterwards begins there, because clients post first and listen second.
    accepted_seq bigint,
    accepted_at timestamptz
) WITH (fillfactor = 60);
CREATE INDEX session_state_wake_idx ON session_state (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX session_state_status_idx ON session_state (workspace_id, status)
    WHERE status <> 'idle';

CREATE TABLE session_threads (
    id uuid PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    parent_thread_id uuid,
    position integer NOT NULL,
    agent text NOT NULL,
    status text NOT NULL,
    view text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    archived_at timestamptz,
    UNIQUE (session_id, position)
) WITH (fillfactor = 70);

-- The log. Rows are never updated: a processed input is a second row with the id of its queued form.
CREATE TABLE events (
    session_id uuid NOT NULL,
    seq bigint NOT NULL,
    event_id uuid NOT NULL,
    thread_id uuid NOT NULL,
    on_session boolean NOT NULL,
    type text NOT NULL,
    -- Null on the queued form of an input.
    processed_at timestamptz,
    -- The exact text clients see.
    body text COMPRESSION lz4 NOT NULL,
    -- What only the engine reads again.
    private text COMPRESSION lz4,
    actor_key uuid,
    request_id text,
    PRIMARY KEY (session_id, seq)
);
CREATE INDEX events_type_idx ON events (session_id, type, seq);
CREATE INDEX events_time_idx ON events (session_id, processed_at, seq);
CREATE INDEX events_session_view_idx ON events (session_id, seq) WHERE on_session;
CREATE INDEX events_thread_idx ON events (session_id, thread_id, seq);

-- One row per request to a model.
CREATE TABLE model_requests (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL,
    session_id uuid,
    thread_id uuid,
    key_id uuid,
    agent_id uuid,
    model text NOT NULL,
    route text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    outcome text,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    cache_creation_input_tokens bigint NOT NULL DEFAULT 0
);
CREATE INDEX model_requests_workspace_idx ON model_requests (workspace_id, started_at);

-- One heartbeat row per server process.
CREATE TABLE servers (
    id uuid PRIMARY KEY,
    -- The sandbox backend this server is connected to.
    backend text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Sandboxes and who owns them. A row without a session is a warm one, ready to be taken.
CREATE TABLE sandboxes (
    id uuid PRIMARY KEY,
    session_id uuid UNIQUE,
    backend text NOT NULL,
    image text NOT NULL,
    -- creating, running, stopped, removing
    status text NOT NULL,
    handle text,
    -- Proves the server to the hands inside.
    hands_key bytea NOT NULL,
    -- The hands' own id of their present life; set before the first call is sent.
    boot_id uuid,
    server_id uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    used_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX sandboxes_warm_idx ON sandboxes (backend, image, created_at) WHERE session_id IS NULL;
CREATE INDEX sandboxes_used_idx ON sandboxes (backend, status, used_at);
