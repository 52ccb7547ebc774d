-- What a session's messages show to the model by reference: files and addresses, each read once and kept as it
-- was then, so that a prompt's prefix never changes.
CREATE TABLE session_content (
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    -- The block it is for: what is an image to one may be nothing to the other.
    kind text NOT NULL CHECK (kind IN ('image', 'document')),
    -- A file's id, or an address.
    source text NOT NULL,
    -- The content and what it is; or why there is none, in words for the model.
    blob_id uuid REFERENCES blobs,
    media_type text,
    problem text,
    PRIMARY KEY (session_id, kind, source),
    CHECK ((blob_id IS NULL) = (media_type IS NULL)),
    CHECK ((blob_id IS NULL) = (problem IS NOT NULL))
);
CREATE INDEX session_content_blob_idx ON session_content (blob_id) WHERE blob_id IS NOT NULL;
