-- What an erasure leaves of consents where `erasure.consents` is "keep": the clear columns, under a number that leads nowhere.

CREATE TABLE consent_evidence (
    id text COLLATE "C" NOT NULL,
    subject_id bigint NOT NULL,
    number bigint NOT NULL,
    consent_type text COLLATE "C" NOT NULL,
    granted boolean NOT NULL,
    given_at timestamptz NOT NULL,
    expires_at timestamptz,
    policy_version text,
    policy_sha256 text,
    legal_basis text,
    method text,
    language text,
    recorded_at timestamptz NOT NULL,
    -- An id is free again after an erasure, and may come to belong to another person.
    PRIMARY KEY (subject_id, id)
);
COMMENT ON TABLE consent_evidence IS 'Consents of erased persons, without anything that identifies or describes them.';
COMMENT ON COLUMN consent_evidence.id IS 'clear: the record''s id';
COMMENT ON COLUMN consent_evidence.subject_id IS 'clear: the number that the erased person had';
COMMENT ON COLUMN consent_evidence.number IS 'clear: the order of recording, which decides between equal given_at';
COMMENT ON COLUMN consent_evidence.consent_type IS 'clear: what was consented to';
COMMENT ON COLUMN consent_evidence.granted IS 'clear: given or withdrawn';
COMMENT ON COLUMN consent_evidence.given_at IS 'clear: when the person decided';
COMMENT ON COLUMN consent_evidence.expires_at IS 'clear: when the consent ended by itself';
COMMENT ON COLUMN consent_evidence.policy_version IS 'clear: which text was shown';
COMMENT ON COLUMN consent_evidence.policy_sha256 IS 'clear: the digest of that text';
COMMENT ON COLUMN consent_evidence.legal_basis IS 'clear: legal basis';
COMMENT ON COLUMN consent_evidence.method IS 'clear: how it was given';
COMMENT ON COLUMN consent_evidence.language IS 'clear: the language of the text';
COMMENT ON COLUMN consent_evidence.recorded_at IS 'clear: when it was recorded';
CREATE TRIGGER append_only BEFORE UPDATE ON consent_evidence FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON consent_evidence TO sidekeep_app;
