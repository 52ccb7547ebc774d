-- Secrets of the whole deployment that the program makes itself: a check of the master key, the certificate
-- authority of the door. Sealed as every secret is: `ciphertext` under a data key, the data key under the master
-- key that `master_key` names.
CREATE TABLE deployment_secrets (
    name text PRIMARY KEY,
    -- The half that is no secret, if there is one: a certificate.
    public text NOT NULL,
    ciphertext bytea NOT NULL,
    data_key bytea NOT NULL,
    master_key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
