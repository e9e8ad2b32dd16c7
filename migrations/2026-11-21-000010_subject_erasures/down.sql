REVOKE DELETE ON consent_records, subjects FROM sidekeep_app;
DROP TABLE subject_erasures;
