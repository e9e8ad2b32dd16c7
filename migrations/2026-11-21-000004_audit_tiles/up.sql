-- Tiles: each complete subtree at every fourth level keeps the sixteen hashes that it is made of, so that a proof reads one
-- row at every fourth level; what no tile has yet is kept beside the head, so that the right edge is one row.

ALTER TABLE audit_nodes DROP CONSTRAINT audit_nodes_level_check;
ALTER TABLE audit_nodes ADD CONSTRAINT audit_nodes_level_check CHECK (level > 0 AND level % 4 = 0);
ALTER TABLE audit_nodes ADD COLUMN children bytea;
ALTER TABLE audit_streams ADD COLUMN edge bytea NOT NULL DEFAULT '';
ALTER TABLE audit_checkpoints ADD COLUMN edge bytea;
-- The edge is rewritten with each batch: within the row, and not compressed, for hashes cannot be.
ALTER TABLE audit_streams SET (toast_tuple_target = 8160);

COMMENT ON TABLE audit_nodes IS 'Complete subtrees of 16, 256, 4,096, … entries with the sixteen hashes that each is made of, so that a proof reads few rows. Stream -1 is the heads log.';
COMMENT ON COLUMN audit_nodes.level IS 'clear: 4 for 16 leaves, 8 for 256, 12 for 4,096, and so on';
COMMENT ON COLUMN audit_nodes.children IS 'clear: the sixteen hashes four levels below its root, from the left';
COMMENT ON COLUMN audit_streams.edge IS 'clear: the hashes at every fourth level that are in no complete subtree of audit_nodes yet, the lowest first';
COMMENT ON COLUMN audit_checkpoints.edge IS 'clear: of the heads log at this size, the hashes at every fourth level that are in no complete subtree of audit_nodes yet, the lowest first';

-- What is in the log already.
CREATE FUNCTION pg_temp.root_over(hashes bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    above bytea;
BEGIN
    WHILE octet_length(hashes) > 32 LOOP
        above := '';
        FOR pair IN 0 .. octet_length(hashes) / 64 - 1 LOOP
            above := above || sha256('\x01'::bytea || substr(hashes, pair * 64 + 1, 64));
        END LOOP;
        hashes := above;
    END LOOP;
    RETURN hashes;
END
$$;
ALTER TABLE audit_nodes DISABLE TRIGGER append_only;
ALTER TABLE audit_checkpoints DISABLE TRIGGER append_only;
CREATE TEMP TABLE tile_hashes ON COMMIT DROP AS
    SELECT stream, 0 AS level, position AS index, leaf_hash AS hash FROM audit_logs
    UNION ALL SELECT -1, 0, index, leaf_hash FROM audit_heads;
DO $$
BEGIN
    FOR tier IN 0 .. 12 LOOP
        WITH tiles AS (
            INSERT INTO audit_nodes AS n (stream, level, index, hash, children)
            SELECT stream, level + 4, index >> 4, pg_temp.root_over(string_agg(hash, '' ORDER BY index)), string_agg(hash, '' ORDER BY index)
            FROM tile_hashes WHERE level = tier * 4 GROUP BY stream, level, index >> 4 HAVING count(*) = 16
            ON CONFLICT (stream, level, index) DO UPDATE SET children = excluded.children
            RETURNING n.stream, n.level, n.index, n.hash)
        INSERT INTO tile_hashes SELECT * FROM tiles;
    END LOOP;
END
$$;
UPDATE audit_streams s SET edge = coalesce((
    SELECT string_agg(hash, '' ORDER BY level, index) FROM tile_hashes t
    WHERE t.stream = s.stream AND t.index < s.size >> t.level AND t.index >> 4 = s.size >> (t.level + 4)), '');
UPDATE audit_checkpoints c SET edge = coalesce((
    SELECT string_agg(hash, '' ORDER BY level, index) FROM tile_hashes t
    WHERE t.stream = -1 AND t.index < c.size >> t.level AND t.index >> 4 = c.size >> (t.level + 4)), '')
WHERE size = (SELECT max(size) FROM audit_checkpoints);
ALTER TABLE audit_nodes ENABLE TRIGGER append_only;
ALTER TABLE audit_checkpoints ENABLE TRIGGER append_only;
DROP FUNCTION pg_temp.root_over(bytea);
