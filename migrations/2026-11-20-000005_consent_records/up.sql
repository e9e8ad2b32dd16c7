CREATE TABLE consent_records (
    id text COLLATE "C" PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 128),
    subject_id bigint NOT NULL REFERENCES subjects ON DELETE CASCADE,
    number bigint GENERATED ALWAYS AS IDENTITY,
    consent_type text COLLATE "C" NOT NULL,
    granted boolean NOT NULL,
    given_at timestamptz NOT NULL,
    expires_at timestamptz,
    policy_version text,
    policy_sha256 text,
    legal_basis text,
    method text,
    language text,
    ip_address_sealed bytea,
    user_agent_sealed bytea,
    metadata_sealed bytea,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- The state at a time, and the history of one type: the newest first.
CREATE INDEX consent_records_by_type ON consent_records (subject_id, consent_type, given_at DESC, number DESC);
-- The history over all types.
CREATE INDEX consent_records_by_time ON consent_records (subject_id, given_at DESC, number DESC);
COMMENT ON TABLE consent_records IS 'Consents and withdrawals, append-only: a withdrawal is a new record.';
COMMENT ON COLUMN consent_records.id IS 'clear: the record''s id';
COMMENT ON COLUMN consent_records.subject_id IS 'clear: whose';
COMMENT ON COLUMN consent_records.number IS 'clear: the order of recording, which decides between equal given_at';
COMMENT ON COLUMN consent_records.consent_type IS 'clear: what is consented to';
COMMENT ON COLUMN consent_records.granted IS 'clear: given or withdrawn';
COMMENT ON COLUMN consent_records.given_at IS 'clear: when the person decided';
COMMENT ON COLUMN consent_records.expires_at IS 'clear: when the consent ends by itself';
COMMENT ON COLUMN consent_records.policy_version IS 'clear: which text was shown';
COMMENT ON COLUMN consent_records.policy_sha256 IS 'clear: the digest of that text';
COMMENT ON COLUMN consent_records.legal_basis IS 'clear: legal basis';
COMMENT ON COLUMN consent_records.method IS 'clear: how it was given';
COMMENT ON COLUMN consent_records.language IS 'clear: the language of the text';
COMMENT ON COLUMN consent_records.ip_address_sealed IS 'sealed: the address it was given from';
COMMENT ON COLUMN consent_records.user_agent_sealed IS 'sealed: the program it was given with';
COMMENT ON COLUMN consent_records.metadata_sealed IS 'sealed: free-form JSON from the application';
COMMENT ON COLUMN consent_records.recorded_at IS 'clear: when it was recorded';

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE ON consent_records FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON consent_records TO sidekeep_app;
