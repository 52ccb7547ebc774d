-- Images with an environment's packages installed. The name says what is in one: it is the hash of the
-- workspace, the base image's id and the packages.
CREATE TABLE environment_images (
    workspace_id uuid NOT NULL REFERENCES workspaces,
    -- Images live where sandboxes do.
    backend text NOT NULL,
    image text NOT NULL,
    -- building, ready, failed, removing
    status text NOT NULL,
    -- What the last attempt failed of, the attempts that failed in a row, and until when that is the answer.
    error text,
    failures integer NOT NULL DEFAULT 0,
    retry_at timestamptz,
    -- The attempt: the sandbox that is built in. What another attempt writes is refused. The row names it
    -- before it exists, so that none is ever left that nobody knows of.
    sandbox_id uuid NOT NULL,
    -- Who builds or removes, and when that server last said so.
    server_id uuid NOT NULL,
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    used_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (workspace_id, backend, image)
);
CREATE INDEX environment_images_used_idx ON environment_images (backend, used_at);
