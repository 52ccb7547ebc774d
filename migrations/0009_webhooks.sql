-- Webhooks: who is told of what (endpoints), what happened (events: the outbox), and who has been told (deliveries).

CREATE TABLE webhook_endpoints (
    id uuid PRIMARY KEY,
    -- Null: of the organization.
    workspace_id uuid REFERENCES workspaces,
    url text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    enabled_events text[] NOT NULL,
    state text NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
    disabled_reason text NOT NULL DEFAULT '',
    -- The unbroken row of failures: since when, and how many.
    failing_since timestamptz,
    failures integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Hidden at once and without secrets; the row goes after its deliveries, in the background.
    deleted_at timestamptz
);
CREATE INDEX webhook_endpoints_list_idx ON webhook_endpoints (workspace_id, created_at, id)
    WHERE deleted_at IS NULL;
-- What every change looks into.
CREATE INDEX webhook_endpoints_enabled_idx ON webhook_endpoints (workspace_id)
    WHERE state = 'enabled' AND deleted_at IS NULL;

-- What an endpoint's deliveries are signed with, sealed. Older secrets sign beside the newest until they expire.
CREATE TABLE webhook_secrets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id uuid NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
    ciphertext bytea NOT NULL,
    data_key bytea NOT NULL,
    master_key text NOT NULL,
    expires_at timestamptz
);
CREATE INDEX webhook_secrets_endpoint_idx ON webhook_secrets (endpoint_id, id DESC);

-- An event that somebody is subscribed to. Rows are never updated.
CREATE TABLE webhook_events (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL,
    type text NOT NULL,
    -- The exact text that is signed and sent.
    body text NOT NULL,
    created_at timestamptz NOT NULL
);

-- No foreign keys: they would make every change of a session lock the rows of endpoints.
CREATE TABLE webhook_deliveries (
    endpoint_id uuid NOT NULL,
    event_id uuid NOT NULL,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'delivered', 'failed', 'canceled')),
    -- Attempts so far; a redelivery starts from none.
    tries integer NOT NULL DEFAULT 0,
    -- When it is due; null when it is over. While somebody has it: when that is taken for lost.
    next_at timestamptz,
    -- The server that makes an attempt right now.
    owner uuid,
    -- What came of the latest attempts.
    attempts jsonb NOT NULL DEFAULT '[]',
    PRIMARY KEY (endpoint_id, event_id)
) WITH (fillfactor = 80);
CREATE INDEX webhook_deliveries_due_idx ON webhook_deliveries (endpoint_id, next_at)
    WHERE next_at IS NOT NULL;
CREATE INDEX webhook_deliveries_owner_idx ON webhook_deliveries (owner) WHERE owner IS NOT NULL;

-- Writes what has happened in a workspace to the outbox, in the transaction of whatever made it happen, for the
-- endpoints that are subscribed at this moment. `happened` is a list of {id, type, head, tail}: the text of an event
-- is `head`, its time, `tail`. Null, for nothing, does nothing. Answers the number of deliveries.
CREATE FUNCTION webhook_emit(workspace uuid, happened_at timestamptz, happened jsonb) RETURNS integer
LANGUAGE plpgsql STRICT AS $$
DECLARE
    queued integer;
BEGIN
    -- Most workspaces have no endpoint: this look is all it costs them.
    IF NOT EXISTS (
        SELECT FROM webhook_endpoints
        WHERE workspace_id = workspace AND state = 'enabled' AND deleted_at IS NULL
    ) THEN
        RETURN 0;
    END IF;
    WITH wanted AS (
        SELECT e.id, e.type, e.head, e.tail, w.id AS endpoint_id
        FROM jsonb_to_recordset(happened) AS e (id uuid, type text, head text, tail text)
        JOIN webhook_endpoints w ON e.type = ANY (w.enabled_events)
        WHERE w.workspace_id = workspace AND w.state = 'enabled' AND w.deleted_at IS NULL
    ), kept AS (
        INSERT INTO webhook_events (id, workspace_id, type, body, created_at)
        SELECT DISTINCT ON (id) id, workspace, type,
               head || to_char(happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || tail,
               happened_at
        FROM wanted
    )
    INSERT INTO webhook_deliveries (endpoint_id, event_id, next_at)
    SELECT endpoint_id, id, happened_at FROM wanted;
    GET DIAGNOSTICS queued = ROW_COUNT;
    RETURN queued;
END
$$;

CREATE TRIGGER refuse_retired_master_key BEFORE INSERT OR UPDATE OF master_key ON webhook_secrets
    FOR EACH ROW EXECUTE FUNCTION refuse_retired_master_key('master_key');
CREATE INDEX webhook_secrets_master_key_idx ON webhook_secrets (master_key);
