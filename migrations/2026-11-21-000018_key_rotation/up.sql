-- Re-wrapping the keys of all people under another key-encryption key.

-- Which keys are in use, and the next ones to re-wrap under each, however many were done before.
DROP INDEX subjects_by_kek;
CREATE INDEX subjects_by_kek ON subjects (kek_id, subject_id);

-- One batch, in one statement. Each key is replaced only while it is the one that was re-wrapped; a row that somebody
-- holds is left for later, so that one slow transaction holds up nobody else's. NULL: a living daemon lacks the new key.
CREATE FUNCTION rewrap_subjects(ids bigint[], old_keys bytea[], new_keys bytea[], new_kek text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rewrapped bigint;
BEGIN
    -- Whoever registers meanwhile waits, and then sees these keys when it looks for those in use; whoever has registered
    -- before is seen below, in a snapshot that is taken after the lock.
    PERFORM pg_advisory_xact_lock_shared(hashtext('sidekeep.daemons'));
    IF EXISTS (
        SELECT FROM sidekeep.daemons d
        WHERE d.seen_at > now() - interval '15 seconds' AND NOT new_kek = ANY (d.kek_ids)
    ) THEN
        RETURN NULL;
    END IF;
    WITH free AS MATERIALIZED (
        SELECT s.subject_id, g.old_key, g.new_key
        FROM unnest(ids, old_keys, new_keys) AS g (subject_id, old_key, new_key)
        JOIN sidekeep.subjects s ON s.subject_id = g.subject_id AND s.wrapped_key = g.old_key
        FOR NO KEY UPDATE OF s SKIP LOCKED
    )
    UPDATE sidekeep.subjects s SET wrapped_key = f.new_key, kek_id = new_kek
    FROM free f WHERE s.subject_id = f.subject_id AND s.wrapped_key = f.old_key;
    GET DIAGNOSTICS rewrapped = ROW_COUNT;
    RETURN rewrapped;
END
$$;
REVOKE ALL ON FUNCTION rewrap_subjects(bigint[], bytea[], bytea[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rewrap_subjects(bigint[], bytea[], bytea[], text) TO sidekeep_app;
