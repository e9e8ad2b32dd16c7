-- Runs of jobs. The row is the claim: who has inserted it, or raised its epoch, runs the job.

CREATE TABLE job_runs (
    run text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    due_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    state text COLLATE "C" NOT NULL CHECK (state IN ('running', 'ok', 'failed')),
    dry_run boolean NOT NULL,
    epoch bigint NOT NULL CHECK (epoch > 0),
    heartbeat_at timestamptz NOT NULL,
    holder text,
    counts jsonb,
    error text,
    CHECK ((state = 'running') = (finished_at IS NULL)),
    CHECK ((state = 'failed') = (error IS NOT NULL))
);
-- One run for each due time, whatever the number of daemons; and the runs of one job, the newest first.
CREATE UNIQUE INDEX job_runs_by_name ON job_runs (name, due_at);
-- A job does not overlap itself.
CREATE UNIQUE INDEX job_runs_running ON job_runs (name) WHERE state = 'running';
-- The runs of all jobs, the newest first.
CREATE INDEX job_runs_by_time ON job_runs (due_at, run);
COMMENT ON TABLE job_runs IS 'Runs of jobs: each due time runs once across all daemons, because the row is the claim.';
COMMENT ON COLUMN job_runs.run IS 'clear: the run''s id';
COMMENT ON COLUMN job_runs.name IS 'clear: the job';
COMMENT ON COLUMN job_runs.due_at IS 'clear: when it was due by its schedule; of a run that was asked for, when it was';
COMMENT ON COLUMN job_runs.started_at IS 'clear: when it was claimed, by PostgreSQL''s clock';
COMMENT ON COLUMN job_runs.finished_at IS 'clear: when it ended';
COMMENT ON COLUMN job_runs.state IS 'clear: running, ok or failed';
COMMENT ON COLUMN job_runs.dry_run IS 'clear: whether it changes nothing, and only counts';
COMMENT ON COLUMN job_runs.epoch IS 'clear: the fencing token: it is raised when another daemon takes the run over';
COMMENT ON COLUMN job_runs.heartbeat_at IS 'clear: when its holder last said that it lives';
COMMENT ON COLUMN job_runs.holder IS 'clear: the daemon that runs it: host, process id and a random id; null after it was let go';
COMMENT ON COLUMN job_runs.counts IS 'clear: what it did, in numbers';
COMMENT ON COLUMN job_runs.error IS 'clear: why it failed, without personal data';

GRANT SELECT, INSERT, UPDATE, DELETE ON job_runs TO sidekeep_app;
