-- The reads that may have shown anybody's data, for the accounting of every person: few entries among very many. Without it,
-- each accounting reads the whole log (measured: 1.3 s for 2 million entries).
CREATE INDEX audit_logs_across ON audit_logs (recorded_at, stream, position)
    WHERE action IN ('audit.query', 'audit.tail', 'request.list', 'subject.holds');
