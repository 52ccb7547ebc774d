-- Skills: named folders of instructions, in immutable versions.

CREATE TABLE skills (
    id uuid PRIMARY KEY,
    -- Null for what the operator has registered: every workspace sees it, none may change it.
    workspace_id uuid REFERENCES workspaces,
    -- How a registered one is known to clients (`xlsx`).
    short_name text,
    -- Of every version, and of the directory in a sandbox.
    name text NOT NULL,
    display_name text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CHECK ((workspace_id IS NULL) = (short_name IS NOT NULL))
);
CREATE UNIQUE INDEX skills_short_name_key ON skills (short_name) WHERE short_name IS NOT NULL;
CREATE INDEX skills_list_idx ON skills (workspace_id, created_at DESC, id DESC);

CREATE TABLE skill_versions (
    id uuid PRIMARY KEY,
    skill_id uuid NOT NULL REFERENCES skills ON DELETE CASCADE,
    -- Microseconds since 1970, or a registered one's date as in 20251013. The greatest is the latest.
    number bigint NOT NULL,
    description text NOT NULL,
    -- The archive in its normal form.
    blob_id uuid NOT NULL REFERENCES blobs,
    created_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX skill_versions_number_key ON skill_versions (skill_id, number);
CREATE INDEX skill_versions_blob_idx ON skill_versions (blob_id);

-- What a session was created with. It keeps these copies whatever becomes of the skills.
CREATE TABLE session_skills (
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    -- As in the agent's list.
    position integer NOT NULL,
    version_id uuid NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    blob_id uuid NOT NULL REFERENCES blobs,
    PRIMARY KEY (session_id, position)
);
CREATE INDEX session_skills_blob_idx ON session_skills (blob_id);
