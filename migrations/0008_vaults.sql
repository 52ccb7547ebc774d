-- Vaults, the credentials in them, and which master key seals.
CREATE TABLE vaults (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces,
    display_name text NOT NULL,
    metadata text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    archived_at timestamptz
);
CREATE INDEX vaults_list_idx ON vaults (workspace_id, created_at DESC, id DESC);
CREATE INDEX vaults_live_idx ON vaults (workspace_id, created_at DESC, id DESC)
    WHERE archived_at IS NULL;

CREATE TABLE vault_credentials (
    id uuid PRIMARY KEY,
    vault_id uuid NOT NULL REFERENCES vaults,
    workspace_id uuid NOT NULL,
    -- The normalised URL of an MCP server, or the name of a variable; no name contains `://`.
    key text NOT NULL,
    type text NOT NULL CHECK (type IN ('static_bearer', 'mcp_oauth', 'environment_variable')),
    display_name text,
    metadata text NOT NULL,
    -- What the API shows of `auth`, as JSON text, but for the expiry, which has its own column.
    auth text NOT NULL,
    expires_at timestamptz,
    -- All secrets, sealed; the three are null together, in an archived credential.
    ciphertext bytea,
    data_key bytea,
    master_key text,
    -- Grows when anything changes that a holder of the secrets must know of.
    generation bigint NOT NULL DEFAULT 0,
    -- There is a refresh token.
    refreshable boolean NOT NULL,
    refreshed_at timestamptz,
    -- Since when and why refreshing fails for good: until a client changes the credential.
    refresh_failed_at timestamptz,
    refresh_failure text,
    -- Before this the background does not try again.
    refresh_next_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Of the last change by a client.
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    archived_at timestamptz,
    CHECK (num_nulls(ciphertext, data_key, master_key) IN (0, 3)),
    CHECK ((archived_at IS NULL) = (ciphertext IS NOT NULL))
);
CREATE UNIQUE INDEX vault_credentials_key_key ON vault_credentials (vault_id, key)
    WHERE archived_at IS NULL;
CREATE INDEX vault_credentials_list_idx ON vault_credentials (vault_id, created_at DESC, id DESC);
CREATE INDEX vault_credentials_expiry_idx ON vault_credentials (expires_at)
    WHERE refreshable AND archived_at IS NULL AND refresh_failed_at IS NULL;

-- In the order in which they are searched. No foreign key: a vault may go, the session goes on.
ALTER TABLE sessions ADD COLUMN vault_ids uuid[] NOT NULL DEFAULT '{}';

-- The master keys that a server can open with, and the one it seals with.
ALTER TABLE servers
    ADD COLUMN master_keys text[] NOT NULL DEFAULT '{}',
    ADD COLUMN sealing_key text;

-- Master keys that are out of use for good: nothing is sealed with them, and nothing will be. A writer that has not
-- heard of it is refused by the database itself, so that the key can be thrown away.
CREATE TABLE retired_master_keys (
    id text PRIMARY KEY,
    retired_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION refuse_retired_master_key() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    used text := to_jsonb(NEW) ->> TG_ARGV[0];
BEGIN
    IF EXISTS (SELECT FROM retired_master_keys WHERE id = used) THEN
        RAISE EXCEPTION 'the master key % is retired', used;
    END IF;
    RETURN NEW;
END
$$;

-- Each table with sealed values has such a trigger and such an index, and is in the list of crates/store/src/seal.
CREATE TRIGGER refuse_retired_master_key BEFORE INSERT OR UPDATE OF master_key ON deployment_secrets
    FOR EACH ROW EXECUTE FUNCTION refuse_retired_master_key('master_key');
CREATE TRIGGER refuse_retired_master_key BEFORE INSERT OR UPDATE OF token_master_key ON session_resources
    FOR EACH ROW WHEN (NEW.token_master_key IS NOT NULL)
    EXECUTE FUNCTION refuse_retired_master_key('token_master_key');
CREATE INDEX session_resources_master_key_idx ON session_resources (token_master_key)
    WHERE token_master_key IS NOT NULL;
CREATE TRIGGER refuse_retired_master_key BEFORE INSERT OR UPDATE OF master_key ON vault_credentials
    FOR EACH ROW WHEN (NEW.master_key IS NOT NULL)
    EXECUTE FUNCTION refuse_retired_master_key('master_key');
CREATE INDEX vault_credentials_master_key_idx ON vault_credentials (master_key)
    WHERE master_key IS NOT NULL;
