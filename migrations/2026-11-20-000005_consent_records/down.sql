DROP TABLE consent_records;
DROP FUNCTION refuse_change();
