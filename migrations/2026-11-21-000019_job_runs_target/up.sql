-- A run that is about one thing is gone on with only by a daemon that means the same.

ALTER TABLE job_runs ADD COLUMN target text COLLATE "C";
COMMENT ON COLUMN job_runs.target IS 'clear: what a run is about, where not every run is about the same: of a rotation, the id of the new key-encryption key';
