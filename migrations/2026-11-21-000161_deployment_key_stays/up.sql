-- Subject 0 is the deployment itself: without its key no head of the log is sealed and no hold or request opens.
CREATE FUNCTION refuse_deployment_delete() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'subject 0 is the deployment itself, and is never deleted' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER deployment BEFORE DELETE ON subjects FOR EACH ROW WHEN (OLD.subject_id = 0) EXECUTE FUNCTION refuse_deployment_delete();
