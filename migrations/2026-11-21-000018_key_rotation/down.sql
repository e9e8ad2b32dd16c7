DROP FUNCTION rewrap_subjects(bigint[], bytea[], bytea[], text);
DROP INDEX subjects_by_kek;
CREATE INDEX subjects_by_kek ON subjects (kek_id);
