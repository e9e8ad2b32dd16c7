//! The selector places every table and column that the database has, with the class that its comment names.

use std::collections::BTreeSet;

use sidekeep::subjects::selector::{Erasure, Export, TABLES, Whose};

use crate::support::World;

/// Tables of the schema, without partitions, views and diesel's own.
const PLACED: &str = "relnamespace = 'sidekeep'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition \
    AND relname <> '__diesel_schema_migrations'";

#[test]
fn every_column_of_the_catalogue_is_placed_under_its_class() {
    let world = World::new();
    let catalogue = world.sql(&format!(
        "SELECT relname || '.' || attname || ' ' || split_part(coalesce(col_description(c.oid, attnum), ''), ':', 1) \
         FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped WHERE {PLACED}"
    ));
    let catalogue: BTreeSet<String> = catalogue.lines().map(str::to_owned).collect();
    let mut placed = BTreeSet::new();
    for table in TABLES {
        for (column, class) in table.columns() {
            assert!(
                placed.insert(format!("{}.{column} {class}", table.name)),
                "{}.{column} twice",
                table.name
            );
        }
    }
    let missing: Vec<_> = catalogue.difference(&placed).collect();
    let unknown: Vec<_> = placed.difference(&catalogue).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "not placed: {missing:?}\nnot there: {unknown:?}");
}

#[test]
fn a_table_that_refers_to_a_person_says_so_and_its_key_is_unique() {
    let world = World::new();
    for table in TABLES {
        let columns: BTreeSet<_> = table.columns().map(|(column, _)| column).collect();
        let name = table.name;
        assert!(table.key.iter().all(|column| columns.contains(column)), "{name}");
        match table.whose {
            Whose::Subject => assert!(columns.contains("subject_id"), "{name}"),
            Whose::Named => assert!(columns.contains("actor_id") && columns.contains("subject_id"), "{name}"),
            Whose::Through { column, .. } => assert!(columns.contains(column), "{name}"),
            Whose::Nobody => {
                assert!(!columns.contains("subject_id") && table.sealed.is_empty(), "{name}");
                assert_eq!((table.erasure, table.export), (Erasure::Nothing, Export::Never), "{name}");
            }
        }
        // Whoever's rows they are, the condition is one that PostgreSQL takes.
        if let Some(condition) = table.condition() {
            let condition = condition.replace("$1", "7");
            assert_eq!(world.sql(&format!("SELECT count(*) FROM {name} WHERE {condition}")), "0");
        }
        if let Erasure::MovedTo(evidence) = table.erasure {
            let kept: BTreeSet<_> =
                TABLES.iter().find(|t| t.name == evidence).unwrap().clear.iter().collect();
            assert_eq!(kept, table.clear.iter().collect(), "{evidence} has the clear columns of {name}");
        }
    }
}

#[test]
fn rows_that_a_person_takes_along_are_deleted_before_the_person() {
    let world = World::new();
    let referring = world.sql(
        "SELECT conrelid::regclass || ' ' || confrelid::regclass FROM pg_constraint \
         WHERE contype = 'f' AND connamespace = 'sidekeep'::regnamespace AND conparentid = 0",
    );
    let place = |name: &str| TABLES.iter().position(|table| table.name == name).unwrap();
    for line in referring.lines() {
        let (from, to) = line.split_once(' ').unwrap();
        let (from, to) = (from.trim_start_matches("sidekeep."), to.trim_start_matches("sidekeep."));
        assert!(place(from) < place(to), "{from} refers to {to}");
        assert_ne!(TABLES[place(from)].erasure, Erasure::Outlives, "{from} would be lost with {to}");
    }
}
