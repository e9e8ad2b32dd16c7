-- The schema, what the daemon must know before it serves, and the one trigger function that record tables share.
-- `sidekeep migrate` has made the schema and set search_path to it.

CREATE TABLE deployment (
    name text COLLATE "C" PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX deployment_is_one_row ON deployment ((true));
COMMENT ON TABLE deployment IS 'The one installation that this database belongs to; its name is bound into every sealed value.';
COMMENT ON COLUMN deployment.name IS 'clear: the deployment''s name';
COMMENT ON COLUMN deployment.created_at IS 'clear: when the first daemon met this database';

CREATE TABLE schema_compatibility (
    min_daemon text NOT NULL
);
CREATE UNIQUE INDEX schema_compatibility_is_one_row ON schema_compatibility ((true));
INSERT INTO schema_compatibility (min_daemon) VALUES ('0.1.0');
COMMENT ON TABLE schema_compatibility IS 'Which daemons may serve on this schema; a migration that older daemons cannot live with raises it.';
COMMENT ON COLUMN schema_compatibility.min_daemon IS 'clear: the oldest version of sidekeep that may serve';

CREATE FUNCTION touch_updated_at() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at);
    RETURN NEW;
END
$$;

GRANT USAGE ON SCHEMA sidekeep TO sidekeep_app;
GRANT SELECT ON __diesel_schema_migrations, schema_compatibility TO sidekeep_app;
GRANT SELECT, INSERT ON deployment TO sidekeep_app;
