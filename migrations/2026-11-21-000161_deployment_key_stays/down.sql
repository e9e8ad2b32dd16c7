DROP TRIGGER deployment ON subjects;
DROP FUNCTION refuse_deployment_delete();
