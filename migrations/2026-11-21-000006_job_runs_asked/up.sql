-- What was asked for, of work that runs by no schedule: whoever goes on with it needs to know.

ALTER TABLE job_runs ADD COLUMN asked jsonb;
COMMENT ON COLUMN job_runs.asked IS 'clear: what was asked for, of work that runs by no schedule; without personal data';
