-- The keyring's own backup: which parts of it are to be written again.

-- A shard is a 256th of all subject ids. What an erasure, a hold or a restriction changes raises the shard's generation in the
-- same transaction; what happens all the time (new people, re-wrapped keys) leaves a mark, so that nobody waits for another,
-- and whoever writes the shard raises it.
CREATE TABLE keyring_shards (
    shard smallint PRIMARY KEY CHECK (shard BETWEEN 0 AND 255),
    generation bigint NOT NULL DEFAULT 0,
    raised_at timestamptz,
    stored bigint NOT NULL DEFAULT 0,
    stored_at timestamptz,
    sealed_under text COLLATE "C",
    kek_ids text[] COLLATE "C" NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE keyring_shards IS 'The parts of the keyring''s backup: a 256th of all subject ids each.';
COMMENT ON COLUMN keyring_shards.shard IS 'clear: the upper eight bits of the subject ids in it';
COMMENT ON COLUMN keyring_shards.generation IS 'clear: raised by whatever changes what the backup has to say; 0 where nobody was ever in it';
COMMENT ON COLUMN keyring_shards.raised_at IS 'clear: since when an erasure, a hold or a restriction is not in the backup';
COMMENT ON COLUMN keyring_shards.stored IS 'clear: the generation that the backup has';
COMMENT ON COLUMN keyring_shards.stored_at IS 'clear: when it was stored';
COMMENT ON COLUMN keyring_shards.sealed_under IS 'clear: the key-encryption key that seals it there';
COMMENT ON COLUMN keyring_shards.kek_ids IS 'clear: the key-encryption keys that wrap the keys in it there';

CREATE TABLE keyring_marks (
    shard smallint PRIMARY KEY
);
COMMENT ON TABLE keyring_marks IS 'Parts of the keyring''s backup that lack somebody who was created, or a key that was re-wrapped.';
COMMENT ON COLUMN keyring_marks.shard IS 'clear: which part';

CREATE TABLE keyring_backups (
    generation bigint PRIMARY KEY,
    stored bigint NOT NULL,
    stored_at timestamptz,
    destination text
);
CREATE UNIQUE INDEX keyring_backups_is_one_row ON keyring_backups ((true));
INSERT INTO keyring_backups (generation, stored) VALUES (0, 0);
COMMENT ON TABLE keyring_backups IS 'The keyring''s backup as a whole.';
COMMENT ON COLUMN keyring_backups.generation IS 'clear: raised with every part that is stored; a manifest names it';
COMMENT ON COLUMN keyring_backups.stored IS 'clear: the generation of the manifest that is stored';
COMMENT ON COLUMN keyring_backups.stored_at IS 'clear: when it was stored';
COMMENT ON COLUMN keyring_backups.destination IS 'clear: where; in another destination everything is written anew';

CREATE TABLE keyring_writes (
    id text COLLATE "C" PRIMARY KEY,
    object text COLLATE "C" NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Those of one object, the newest first.
CREATE INDEX keyring_writes_by_object ON keyring_writes (object, begun_at);
COMMENT ON TABLE keyring_writes IS 'What this database has begun to write of the keyring''s backup. An object of which nothing is here is that of a later state of the database, or of another one, and is not replaced.';
COMMENT ON COLUMN keyring_writes.id IS 'clear: a random id that the object bears';
COMMENT ON COLUMN keyring_writes.object IS 'clear: the object''s name';
COMMENT ON COLUMN keyring_writes.begun_at IS 'clear: when it was begun';

CREATE FUNCTION shard_of(subject_id bigint) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT (subject_id >> 45)::smallint $$;

-- In the order of the shards, so that two who erase several people do not deadlock.
CREATE FUNCTION raise_shards(shards smallint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM sidekeep.keyring_shards k WHERE k.shard = ANY (shards) ORDER BY k.shard FOR NO KEY UPDATE;
    UPDATE sidekeep.keyring_shards k SET generation = k.generation + 1, raised_at = coalesce(k.raised_at, clock_timestamp())
        WHERE k.shard = ANY (shards);
END
$$;

-- The lock is shared among those who mark, and taken alone by whoever takes the mark away: it waits for those who rely on the
-- mark that is there.
CREATE FUNCTION mark_shards(shards smallint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    marked smallint;
BEGIN
    FOREACH marked IN ARRAY (SELECT coalesce(array_agg(s ORDER BY s), '{}') FROM unnest(shards) s) LOOP
        PERFORM pg_advisory_xact_lock_shared(hashtext('sidekeep.keyring_marks'), marked);
        INSERT INTO sidekeep.keyring_marks (shard) VALUES (marked) ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;

CREATE FUNCTION raise_changed_shards() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM sidekeep.raise_shards(ARRAY (SELECT DISTINCT sidekeep.shard_of(c.subject_id) FROM changed c));
    RETURN NULL;
END
$$;

CREATE FUNCTION mark_changed_shards() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM sidekeep.mark_shards(ARRAY (SELECT DISTINCT sidekeep.shard_of(c.subject_id) FROM changed c));
    RETURN NULL;
END
$$;

-- Those who are refused for a while are nobody's: they are in the shard of their digest.
CREATE FUNCTION mark_refusals() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM sidekeep.mark_shards(ARRAY (SELECT DISTINCT get_byte(c.digest, 0)::smallint FROM changed c));
    RETURN NULL;
END
$$;

CREATE FUNCTION raise_updated_shards() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM sidekeep.raise_shards(ARRAY (
        SELECT DISTINCT sidekeep.shard_of(n.subject_id) FROM changed n JOIN before o USING (subject_id)
        WHERE n.restricted_at IS DISTINCT FROM o.restricted_at));
    PERFORM sidekeep.mark_shards(ARRAY (
        SELECT DISTINCT sidekeep.shard_of(n.subject_id) FROM changed n JOIN before o USING (subject_id)
        WHERE n.wrapped_key <> o.wrapped_key OR n.kek_id <> o.kek_id));
    RETURN NULL;
END
$$;

CREATE FUNCTION raise_all_shards() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM sidekeep.raise_shards(ARRAY (SELECT k.shard FROM sidekeep.keyring_shards k WHERE k.generation > 0));
    RETURN NULL;
END
$$;

CREATE TRIGGER shards_on_insert AFTER INSERT ON subjects REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION mark_changed_shards();
CREATE TRIGGER shards_on_update AFTER UPDATE ON subjects REFERENCING NEW TABLE AS changed OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION raise_updated_shards();
CREATE TRIGGER shards_on_delete AFTER DELETE ON subjects REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION raise_changed_shards();
CREATE TRIGGER shards_on_truncate AFTER TRUNCATE ON subjects FOR EACH STATEMENT EXECUTE FUNCTION raise_all_shards();
CREATE TRIGGER shards_on_insert AFTER INSERT ON subject_erasures REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION raise_changed_shards();
CREATE TRIGGER shards_on_insert AFTER INSERT ON subject_refusals REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION mark_refusals();
CREATE TRIGGER shards_on_update AFTER UPDATE ON subject_refusals REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION mark_refusals();
CREATE TRIGGER shards_on_insert AFTER INSERT ON legal_holds REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION raise_changed_shards();
CREATE TRIGGER shards_on_update AFTER UPDATE ON legal_holds REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION raise_changed_shards();

-- What was there before there was a backup.
INSERT INTO keyring_shards (shard, generation)
    SELECT s, (SELECT CASE WHEN EXISTS (SELECT FROM subjects p WHERE p.subject_id BETWEEN s::bigint << 45 AND ((s + 1)::bigint << 45) - 1)
            OR EXISTS (SELECT FROM subject_erasures e WHERE e.subject_id BETWEEN s::bigint << 45 AND ((s + 1)::bigint << 45) - 1)
            OR EXISTS (SELECT FROM subject_refusals r WHERE get_byte(r.digest, 0) = s)
        THEN 1 ELSE 0 END)
    FROM generate_series(0, 255) s;

GRANT SELECT, UPDATE (generation, raised_at, stored, stored_at, sealed_under, kek_ids) ON keyring_shards TO sidekeep_app;
GRANT SELECT, INSERT, DELETE ON keyring_marks, keyring_writes TO sidekeep_app;
GRANT SELECT, UPDATE ON keyring_backups TO sidekeep_app;
