-- The log for whoever reads it with psql has all that an entry has, its persons' numbers and its leaf hash too.
CREATE OR REPLACE VIEW audit_log_entries AS
    SELECT l.stream, l.position, l.recorded_at, l.id,
        CASE WHEN l.actor_id IS NOT NULL THEN coalesce(a.user_id, 'anonymized') END AS user_id,
        CASE WHEN l.subject_id IS NOT NULL THEN coalesce(s.user_id, 'anonymized') END AS subject_user_id,
        l.action, l.resource_type, l.resource_id, l.outcome, l.occurred_at, l.labels,
        l.format, l.actor_id, l.subject_id, l.client_sealed, l.metadata_sealed, l.leaf_hash
    FROM audit_logs l LEFT JOIN subjects a ON a.subject_id = l.actor_id LEFT JOIN subjects s ON s.subject_id = l.subject_id;
COMMENT ON COLUMN audit_log_entries.format IS 'clear: the form of its canonical bytes';
COMMENT ON COLUMN audit_log_entries.actor_id IS 'clear: who acted, as a number; nobody is behind it after an erasure';
COMMENT ON COLUMN audit_log_entries.subject_id IS 'clear: whose data it was, as a number; nobody is behind it after an erasure';
COMMENT ON COLUMN audit_log_entries.client_sealed IS 'sealed: address and program of the caller';
COMMENT ON COLUMN audit_log_entries.metadata_sealed IS 'sealed: whatever the application adds';
COMMENT ON COLUMN audit_log_entries.leaf_hash IS 'clear: the hash of its canonical bytes, the leaf of its stream';
