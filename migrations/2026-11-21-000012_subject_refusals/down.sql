DROP VIEW audit_log_entries;
DROP FUNCTION create_subjects(bigint[], text[], bytea[], bytea[], text);
DROP TABLE subject_refusals;
