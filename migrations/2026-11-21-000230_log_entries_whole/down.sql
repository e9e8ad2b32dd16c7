DROP VIEW audit_log_entries;
CREATE VIEW audit_log_entries AS
    SELECT l.stream, l.position, l.recorded_at, l.id,
        CASE WHEN l.actor_id IS NOT NULL THEN coalesce(a.user_id, 'anonymized') END AS user_id,
        CASE WHEN l.subject_id IS NOT NULL THEN coalesce(s.user_id, 'anonymized') END AS subject_user_id,
        l.action, l.resource_type, l.resource_id, l.outcome, l.occurred_at, l.labels
    FROM audit_logs l LEFT JOIN subjects a ON a.subject_id = l.actor_id LEFT JOIN subjects s ON s.subject_id = l.subject_id;
COMMENT ON VIEW audit_log_entries IS 'The log with its persons under their user ids, and those who are erased as anonymized. For the owner of the tables: daemons read audit_logs.';
COMMENT ON COLUMN audit_log_entries.stream IS 'clear: which stream';
COMMENT ON COLUMN audit_log_entries.position IS 'clear: the place in the stream';
COMMENT ON COLUMN audit_log_entries.recorded_at IS 'clear: when it was appended';
COMMENT ON COLUMN audit_log_entries.id IS 'clear: the entry''s id';
COMMENT ON COLUMN audit_log_entries.user_id IS 'identity: who acted';
COMMENT ON COLUMN audit_log_entries.subject_user_id IS 'identity: whose data it was';
COMMENT ON COLUMN audit_log_entries.action IS 'clear: what was done';
COMMENT ON COLUMN audit_log_entries.resource_type IS 'clear: what kind of thing it was done to';
COMMENT ON COLUMN audit_log_entries.resource_id IS 'clear: which one; @actor and @subject stand for the persons';
COMMENT ON COLUMN audit_log_entries.outcome IS 'clear: success, failure or denied';
COMMENT ON COLUMN audit_log_entries.occurred_at IS 'clear: when it was done, as the caller says';
COMMENT ON COLUMN audit_log_entries.labels IS 'clear: words to filter by';
