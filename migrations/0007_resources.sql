-- What a session has mounted: files and repositories.
CREATE TABLE session_resources (
    id uuid PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    position bigint GENERATED ALWAYS AS IDENTITY,
    type text NOT NULL CHECK (type IN ('file', 'github_repository')),
    -- Absolute, where it really is in the sandbox.
    mount_path text NOT NULL,
    -- The path exactly as it was asked for, when that is another one: a link is put there.
    alias_path text,
    -- The object that the API shows, as JSON text.
    body text NOT NULL,
    -- Of a file: the content, shared with the file it was copied from, and the session's own copy.
    blob_id uuid REFERENCES blobs,
    file_id uuid,
    -- Of a repository: its token, sealed; all three or none.
    token bytea,
    token_data_key bytea,
    token_master_key text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Kept until the session is purged: whoever has mounted it must still learn where it was.
    deleted_at timestamptz
);
CREATE UNIQUE INDEX session_resources_mount_path_key ON session_resources (session_id, mount_path)
    WHERE deleted_at IS NULL;
CREATE INDEX session_resources_session_idx ON session_resources (session_id, position);
CREATE INDEX session_resources_blob_idx ON session_resources (blob_id) WHERE blob_id IS NOT NULL;

-- A session's resources as the API shows them: the text of a JSON array.
CREATE FUNCTION session_resources(session uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT '[' || COALESCE(string_agg(body, ',' ORDER BY position), '') || ']'
    FROM session_resources WHERE session_id = session AND deleted_at IS NULL
$$;

-- Whether a session has, or ever had, something to mount: the others are spared a look.
ALTER TABLE sessions ADD COLUMN equipped boolean NOT NULL DEFAULT false;
-- What the first look into the mounted repositories found: their skills, as JSON text.
ALTER TABLE sessions ADD COLUMN findings text;

-- What a sandbox has in its file system already: ids of resources and skill versions.
ALTER TABLE sandboxes ADD COLUMN mounted uuid[] NOT NULL DEFAULT '{}';

-- The files under /mnt/session/outputs as they were captured last.
CREATE TABLE session_outputs (
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    path text NOT NULL,
    size bigint NOT NULL,
    -- Nanoseconds since 1970, and the inode: together with the size they tell whether it changed.
    modified bigint NOT NULL,
    inode bigint NOT NULL,
    PRIMARY KEY (session_id, path)
);
