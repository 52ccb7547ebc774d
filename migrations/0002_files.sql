-- Files and what they hold.

-- Contents, once each, in an object store. A row is made in the transaction that first refers to it.
CREATE TABLE blobs (
    id uuid PRIMARY KEY,
    size bigint NOT NULL,
    sha256 bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX blobs_created_idx ON blobs (created_at);

-- Contents that nothing can refer to any more, and whose objects are still to be removed.
CREATE TABLE blob_garbage (
    id uuid PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE files (
    -- Made from the database's time, so that ids alone are in the order of creation.
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces,
    -- Null for what a client has uploaded.
    session_id uuid REFERENCES sessions ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('upload', 'input', 'output')),
    filename text NOT NULL,
    mime_type text NOT NULL,
    size_bytes bigint NOT NULL,
    -- Null once it has expired: what is left is for reading about it.
    blob_id uuid REFERENCES blobs,
    downloadable boolean NOT NULL,
    -- Of an output: its path below the directory of outputs.
    path text,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    CHECK ((kind = 'upload') = (session_id IS NULL)),
    CHECK ((kind = 'output') = (path IS NOT NULL))
);
CREATE INDEX files_uploads_idx ON files (workspace_id, id DESC) WHERE session_id IS NULL;
CREATE INDEX files_session_idx ON files (session_id, id DESC) WHERE session_id IS NOT NULL;
CREATE UNIQUE INDEX files_output_key ON files (session_id, path) WHERE kind = 'output';
CREATE INDEX files_blob_idx ON files (blob_id) WHERE blob_id IS NOT NULL;
CREATE INDEX files_expiry_idx ON files (expires_at) WHERE expires_at IS NOT NULL;
-- For quotas: what a workspace's own files hold.
CREATE INDEX files_quota_idx ON files (workspace_id) INCLUDE (size_bytes)
    WHERE kind <> 'input' AND blob_id IS NOT NULL;

-- What some server does from time to time for the whole deployment, and when it was last begun.
CREATE TABLE chores (
    name text PRIMARY KEY,
    begun_at timestamptz NOT NULL
);
