ALTER TABLE audit_streams
    ADD CONSTRAINT audit_streams_stream_check CHECK (stream >= 0),
    ADD CONSTRAINT audit_streams_size_check CHECK (size >= 0);
ALTER TABLE audit_logs
    ADD CONSTRAINT audit_logs_stream_check CHECK (stream >= 0),
    ADD CONSTRAINT audit_logs_position_check CHECK (position BETWEEN 0 AND 9007199254740991),
    ADD CONSTRAINT audit_logs_id_check CHECK (octet_length(id) BETWEEN 1 AND 128);
