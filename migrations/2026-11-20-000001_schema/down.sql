REVOKE ALL ON __diesel_schema_migrations FROM sidekeep_app;
REVOKE USAGE ON SCHEMA sidekeep FROM sidekeep_app;
DROP FUNCTION touch_updated_at();
DROP TABLE schema_compatibility;
DROP TABLE deployment;
