DROP TABLE backup_policy;
