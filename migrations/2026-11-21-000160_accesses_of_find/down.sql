DROP INDEX audit_logs_across;
CREATE INDEX audit_logs_across ON audit_logs (recorded_at, stream, position)
    WHERE action IN ('audit.query', 'audit.tail', 'request.list', 'subject.holds');
