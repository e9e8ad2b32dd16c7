DROP TABLE audit_publications;
