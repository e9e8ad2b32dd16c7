DROP FUNCTION drop_audit_month(date);
DROP VIEW expired_audit_months, expired_consents, expired_conversations;
DROP FUNCTION audit_months_due();
DROP FUNCTION audit_month_archived(date);
DROP FUNCTION audit_month_streams(date);
DROP FUNCTION audit_months();
DROP FUNCTION retention_floor_seconds();
DROP TABLE audit_dropped, retention_floor, retention_policies;
REVOKE DELETE ON requests, consent_evidence FROM sidekeep_app;
