-- Legal holds (GDPR Art. 17(3)(e)): while one is open, the person is not erased, whoever tries.

CREATE TABLE legal_holds (
    id text COLLATE "C" PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 128),
    subject_id bigint NOT NULL REFERENCES subjects ON DELETE CASCADE,
    reason_sealed bytea NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at timestamptz,
    release_reason_sealed bytea,
    CHECK ((released_at IS NULL) = (release_reason_sealed IS NULL))
);
-- Whether a person is held.
CREATE INDEX legal_holds_open ON legal_holds (subject_id) WHERE released_at IS NULL;
-- One person's holds, and all of them, the newest first.
CREATE INDEX legal_holds_by_subject ON legal_holds (subject_id, placed_at DESC, id DESC);
CREATE INDEX legal_holds_by_time ON legal_holds (placed_at DESC, id DESC);
COMMENT ON TABLE legal_holds IS 'Legal holds: while one is open, nothing of the person''s is deleted. A released one goes with the person.';
COMMENT ON COLUMN legal_holds.id IS 'clear: the hold''s id';
COMMENT ON COLUMN legal_holds.subject_id IS 'clear: who is held';
COMMENT ON COLUMN legal_holds.reason_sealed IS 'sealed: why it was placed';
COMMENT ON COLUMN legal_holds.placed_at IS 'clear: when it was placed';
COMMENT ON COLUMN legal_holds.released_at IS 'clear: when it was released; null while it stands';
COMMENT ON COLUMN legal_holds.release_reason_sealed IS 'sealed: why it was released';

-- The last guard, behind what the daemon checks: also for whoever deletes by hand. It reads after the row is locked, so that a
-- hold that is being placed is waited for.
CREATE FUNCTION refuse_held_subject() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM sidekeep.legal_holds h WHERE h.subject_id = OLD.subject_id AND h.released_at IS NULL) THEN
        RAISE EXCEPTION 'a legal hold stands: the person is not deleted' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN OLD;
END
$$;
CREATE TRIGGER held BEFORE DELETE ON subjects FOR EACH ROW EXECUTE FUNCTION refuse_held_subject();

CREATE FUNCTION refuse_truncate_held() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM sidekeep.legal_holds h WHERE h.released_at IS NULL) THEN
        RAISE EXCEPTION 'a legal hold stands: % is not truncated', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER held_truncate BEFORE TRUNCATE ON subjects FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate_held();
CREATE TRIGGER held_truncate BEFORE TRUNCATE ON legal_holds FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate_held();

-- A hold ends by its release alone, and only once.
CREATE FUNCTION refuse_hold_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.released_at IS NULL THEN
            RAISE EXCEPTION 'a legal hold is released, and not deleted' USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN OLD;
    END IF;
    IF OLD.released_at IS NOT NULL
        OR (OLD.id, OLD.subject_id, OLD.reason_sealed, OLD.placed_at) IS DISTINCT FROM (NEW.id, NEW.subject_id, NEW.reason_sealed, NEW.placed_at)
    THEN
        RAISE EXCEPTION 'a legal hold is released once, and not changed otherwise' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER held BEFORE UPDATE OR DELETE ON legal_holds FOR EACH ROW EXECUTE FUNCTION refuse_hold_change();

-- Of released ones alone, as the trigger sees to.
GRANT SELECT, INSERT, DELETE, UPDATE (released_at, release_reason_sealed) ON legal_holds TO sidekeep_app;
