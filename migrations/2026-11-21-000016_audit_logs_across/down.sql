DROP INDEX audit_logs_across;
