//! The tables as diesel knows them, in the form of `diesel print-schema`; a test compares them with the catalogue.
#![expect(missing_docs, reason = "each column is described in the database itself, by COMMENT ON")]

diesel::table! {
    sidekeep.deployment (name) {
        name -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.schema_compatibility (min_daemon) {
        min_daemon -> Text,
    }
}

diesel::table! {
    sidekeep.subjects (subject_id) {
        subject_id -> Int8,
        user_id -> Nullable<Text>,
        wrapped_key -> Bytea,
        kek_id -> Text,
        created_at -> Timestamptz,
        restricted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    sidekeep.keyring_shards (shard) {
        shard -> Int2,
        generation -> Int8,
        raised_at -> Nullable<Timestamptz>,
        stored -> Int8,
        stored_at -> Nullable<Timestamptz>,
        sealed_under -> Nullable<Text>,
        kek_ids -> Array<Text>,
    }
}

diesel::table! {
    sidekeep.keyring_marks (shard) {
        shard -> Int2,
    }
}

diesel::table! {
    sidekeep.keyring_backups (generation) {
        generation -> Int8,
        stored -> Int8,
        stored_at -> Nullable<Timestamptz>,
        destination -> Nullable<Text>,
    }
}

diesel::table! {
    sidekeep.keyring_writes (id) {
        id -> Text,
        object -> Text,
        begun_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.legal_holds (id) {
        id -> Text,
        subject_id -> Int8,
        reason_sealed -> Bytea,
        placed_at -> Timestamptz,
        released_at -> Nullable<Timestamptz>,
        release_reason_sealed -> Nullable<Bytea>,
    }
}

diesel::table! {
    sidekeep.user_profiles (subject_id) {
        subject_id -> Int8,
        username_sealed -> Bytea,
        email_sealed -> Bytea,
        full_name_sealed -> Nullable<Bytea>,
        metadata_sealed -> Nullable<Bytea>,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        username_digest -> Nullable<Bytea>,
        email_digest -> Nullable<Bytea>,
    }
}

diesel::table! {
    sidekeep.user_preferences (subject_id) {
        subject_id -> Int8,
        preferences_sealed -> Bytea,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.consent_records (id) {
        id -> Text,
        subject_id -> Int8,
        number -> Int8,
        consent_type -> Text,
        granted -> Bool,
        given_at -> Timestamptz,
        expires_at -> Nullable<Timestamptz>,
        policy_version -> Nullable<Text>,
        policy_sha256 -> Nullable<Text>,
        legal_basis -> Nullable<Text>,
        method -> Nullable<Text>,
        language -> Nullable<Text>,
        ip_address_sealed -> Nullable<Bytea>,
        user_agent_sealed -> Nullable<Bytea>,
        metadata_sealed -> Nullable<Bytea>,
        recorded_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.conversations (id) {
        id -> Text,
        subject_id -> Int8,
        title_sealed -> Nullable<Bytea>,
        metadata_sealed -> Nullable<Bytea>,
        archived -> Bool,
        message_count -> Int8,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        last_message_at -> Nullable<Timestamptz>,
        active_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.conversation_messages (conversation_id, position) {
        conversation_id -> Text,
        position -> Int8,
        message_id -> Nullable<Text>,
        message_sealed -> Bytea,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.audit_logs (stream, position, recorded_at) {
        stream -> Int4,
        position -> Int8,
        recorded_at -> Timestamptz,
        format -> Int2,
        id -> Text,
        actor_id -> Nullable<Int8>,
        subject_id -> Nullable<Int8>,
        action -> Text,
        resource_type -> Nullable<Text>,
        resource_id -> Nullable<Text>,
        outcome -> Nullable<Text>,
        occurred_at -> Nullable<Timestamptz>,
        labels -> Nullable<Jsonb>,
        client_sealed -> Nullable<Bytea>,
        metadata_sealed -> Nullable<Bytea>,
        leaf_hash -> Bytea,
    }
}

diesel::table! {
    sidekeep.audit_streams (stream) {
        stream -> Int4,
        epoch -> Int8,
        size -> Int8,
        root -> Bytea,
        head_mac -> Bytea,
        frontier -> Bytea,
        last_recorded_at -> Nullable<Timestamptz>,
        leased_until -> Timestamptz,
        closed_at -> Nullable<Timestamptz>,
        edge -> Bytea,
    }
}

diesel::table! {
    sidekeep.audit_nodes (stream, level, index) {
        stream -> Int4,
        level -> Int4,
        index -> Int8,
        hash -> Bytea,
        children -> Nullable<Bytea>,
    }
}

diesel::table! {
    sidekeep.audit_staged (number) {
        number -> Int8,
        staged_at -> Timestamptz,
        id -> Text,
        actor_id -> Nullable<Int8>,
        subject_id -> Nullable<Int8>,
        action -> Text,
        resource_type -> Nullable<Text>,
        resource_id -> Nullable<Text>,
        outcome -> Nullable<Text>,
        labels -> Nullable<Jsonb>,
        client_sealed -> Nullable<Bytea>,
        mac -> Bytea,
        metadata_sealed -> Nullable<Bytea>,
        occurred_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    sidekeep.audit_heads (index) {
        index -> Int8,
        stream -> Int4,
        size -> Int8,
        root -> Bytea,
        at -> Timestamptz,
        leaf_hash -> Bytea,
    }
}

diesel::table! {
    sidekeep.audit_checkpoints (size) {
        size -> Int8,
        root -> Bytea,
        note -> Text,
        at -> Timestamptz,
        edge -> Nullable<Bytea>,
    }
}

diesel::table! {
    sidekeep.audit_verified (stream) {
        stream -> Int4,
        blocks -> Int8,
        edge -> Bytea,
        again -> Int8,
        at -> Timestamptz,
        mac -> Bytea,
    }
}

diesel::table! {
    sidekeep.audit_publications (destination) {
        destination -> Text,
        size -> Int8,
        at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.audit_archives (stream, month) {
        stream -> Int4,
        month -> Date,
        first_position -> Int8,
        last_position -> Int8,
        entries -> Int8,
        object -> Text,
        manifest -> Text,
        size -> Int8,
        sha256 -> Bytea,
        verified_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    sidekeep.audit_dropped (stream, month) {
        stream -> Int4,
        month -> Date,
        size -> Int8,
        edge -> Bytea,
        at -> Timestamptz,
        mac -> Bytea,
    }
}

diesel::table! {
    sidekeep.retention_policies (name) {
        name -> Text,
        keep_seconds -> Int8,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.retention_floor (confirmed_at) {
        keep_seconds -> Int8,
        confirmed_at -> Timestamptz,
        clock_seen -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.job_runs (run) {
        run -> Text,
        name -> Text,
        due_at -> Timestamptz,
        started_at -> Timestamptz,
        finished_at -> Nullable<Timestamptz>,
        state -> Text,
        dry_run -> Bool,
        epoch -> Int8,
        heartbeat_at -> Timestamptz,
        holder -> Nullable<Text>,
        counts -> Nullable<Jsonb>,
        error -> Nullable<Text>,
        asked -> Nullable<Jsonb>,
    }
}

diesel::table! {
    sidekeep.daemons (daemon) {
        daemon -> Text,
        host -> Text,
        version -> Text,
        kek_ids -> Array<Text>,
        wraps_under -> Text,
        started_at -> Timestamptz,
        seen_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.requests (id) {
        id -> Text,
        subject_id -> Int8,
        kind -> Text,
        channel -> Nullable<Text>,
        opened_at -> Timestamptz,
        received_at -> Timestamptz,
        due_at -> Timestamptz,
        extended_at -> Nullable<Timestamptz>,
        extension_reason_sealed -> Nullable<Bytea>,
        closed_at -> Nullable<Timestamptz>,
        outcome -> Nullable<Text>,
        outcome_reason_sealed -> Nullable<Bytea>,
        results -> Jsonb,
    }
}

diesel::table! {
    sidekeep.subject_erasures (subject_id) {
        subject_id -> Int8,
        erased_at -> Timestamptz,
        reason -> Text,
        entry_id -> Text,
        certificate_id -> Text,
        certificate -> Jsonb,
        note_sealed -> Nullable<Bytea>,
    }
}

diesel::table! {
    sidekeep.consent_evidence (subject_id, id) {
        id -> Text,
        subject_id -> Int8,
        number -> Int8,
        consent_type -> Text,
        granted -> Bool,
        given_at -> Timestamptz,
        expires_at -> Nullable<Timestamptz>,
        policy_version -> Nullable<Text>,
        policy_sha256 -> Nullable<Text>,
        legal_basis -> Nullable<Text>,
        method -> Nullable<Text>,
        language -> Nullable<Text>,
        recorded_at -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.subject_refusals (digest) {
        digest -> Bytea,
        refused_until -> Timestamptz,
    }
}

diesel::table! {
    sidekeep.backup_policy (one) {
        one -> Bool,
        daily -> Int4,
        weekly -> Int4,
        monthly -> Int4,
        physical_seconds -> Nullable<Int8>,
        at -> Timestamptz,
        every_seconds -> Int8,
        drill_seconds -> Int8,
        making -> Nullable<Text>,
        oldest_at -> Nullable<Timestamptz>,
        proved_at -> Nullable<Timestamptz>,
        destination -> Nullable<Text>,
    }
}

diesel::joinable!(legal_holds -> subjects (subject_id));
diesel::joinable!(user_profiles -> subjects (subject_id));
diesel::joinable!(user_preferences -> subjects (subject_id));
diesel::joinable!(consent_records -> subjects (subject_id));
diesel::joinable!(conversations -> subjects (subject_id));
diesel::joinable!(conversation_messages -> conversations (conversation_id));

diesel::allow_tables_to_appear_in_same_query!(
    subjects,
    legal_holds,
    requests,
    user_profiles,
    user_preferences,
    consent_records,
    conversations,
    conversation_messages,
);
