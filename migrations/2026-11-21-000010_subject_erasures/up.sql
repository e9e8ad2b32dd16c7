-- Tombstones: that somebody was erased, when and why, without saying who.

CREATE TABLE subject_erasures (
    subject_id bigint PRIMARY KEY CHECK (subject_id BETWEEN 1 AND 9007199254740991),
    erased_at timestamptz NOT NULL,
    reason text COLLATE "C" NOT NULL,
    entry_id text COLLATE "C" NOT NULL UNIQUE,
    certificate_id text COLLATE "C" NOT NULL UNIQUE CHECK (octet_length(certificate_id) BETWEEN 1 AND 128),
    certificate jsonb NOT NULL,
    note_sealed bytea
);
COMMENT ON TABLE subject_erasures IS 'Tombstones of erased persons, append-only: what was a person''s number leads here, and here to nobody.';
COMMENT ON COLUMN subject_erasures.subject_id IS 'clear: the number that the person had; it is never used again';
COMMENT ON COLUMN subject_erasures.erased_at IS 'clear: when the person was erased, by PostgreSQL''s clock';
COMMENT ON COLUMN subject_erasures.reason IS 'clear: why, as one of the grounds of GDPR Art. 17(1)';
COMMENT ON COLUMN subject_erasures.entry_id IS 'clear: the entry of the audit log that tells of it';
COMMENT ON COLUMN subject_erasures.certificate_id IS 'clear: the certificate''s id';
COMMENT ON COLUMN subject_erasures.certificate IS 'clear: the signed certificate, without the salt that would tie it to a user id';
COMMENT ON COLUMN subject_erasures.note_sealed IS 'sealed: a note for the controller, under the deployment''s key';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON subject_erasures
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON subject_erasures TO sidekeep_app;

-- An erasure deletes what is the person's, and the person.
GRANT DELETE ON consent_records, subjects TO sidekeep_app;
