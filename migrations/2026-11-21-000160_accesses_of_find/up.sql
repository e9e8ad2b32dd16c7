-- A search that finds several people names none of them, and is a read across people as the others are.
DROP INDEX audit_logs_across;
CREATE INDEX audit_logs_across ON audit_logs (recorded_at, stream, position)
    WHERE action IN ('audit.query', 'audit.tail', 'request.list', 'subject.find', 'subject.holds');
