DROP TABLE audit_checkpoints;
DROP TABLE audit_heads;
DROP TABLE audit_staged;
DROP FUNCTION refuse_lost_staged();
DROP TABLE audit_nodes;
DROP TABLE audit_streams;
DROP FUNCTION create_audit_month(date);
DROP TABLE audit_logs;
