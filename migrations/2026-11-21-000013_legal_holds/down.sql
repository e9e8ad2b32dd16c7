DROP TRIGGER held ON subjects;
DROP TRIGGER held_truncate ON subjects;
DROP TABLE legal_holds;
DROP FUNCTION refuse_held_subject();
DROP FUNCTION refuse_truncate_held();
DROP FUNCTION refuse_hold_change();
