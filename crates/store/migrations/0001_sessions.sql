-- Times are integer microseconds since 1970 (UTC); booleans are 0 and 1; JSON and ids are text.

-- Source of integer ids, which are never used twice, and of change marks.
CREATE TABLE counters (
    name  TEXT PRIMARY KEY NOT NULL,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES
    ('account', 0), ('api_key', 0), ('ssh_key', 0), ('account_changes', 0);

CREATE TABLE accounts (
    id          BIGINT PRIMARY KEY NOT NULL,
    email       TEXT NOT NULL UNIQUE,
    name        TEXT NOT NULL,
    is_active   BIGINT NOT NULL,
    created_at  BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id           BIGINT PRIMARY KEY NOT NULL,
    account_id   BIGINT NOT NULL REFERENCES accounts (id),
    key_hash     TEXT NOT NULL UNIQUE,
    key_prefix   TEXT NOT NULL,
    description  TEXT NOT NULL,
    is_active    BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT
);
CREATE INDEX api_keys_of_account ON api_keys (account_id);

CREATE TABLE ssh_keys (
    id          BIGINT PRIMARY KEY NOT NULL,
    account_id  BIGINT NOT NULL REFERENCES accounts (id),
    key_type    TEXT NOT NULL,
    public_key  TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    comment     TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    UNIQUE (account_id, fingerprint)
);

CREATE TABLE sessions (
    id               TEXT PRIMARY KEY NOT NULL,
    account_id       BIGINT NOT NULL REFERENCES accounts (id),
    vm_id            TEXT,
    env              TEXT NOT NULL,
    metadata         TEXT NOT NULL,
    memory_mb        BIGINT NOT NULL,
    vcpu_count       BIGINT NOT NULL,
    lifetime_seconds BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    killed_at        BIGINT
);
CREATE INDEX sessions_of_account ON sessions (account_id, created_at);

CREATE TABLE vms (
    id               TEXT PRIMARY KEY NOT NULL,
    account_id       BIGINT NOT NULL REFERENCES accounts (id),
    session_id       TEXT NOT NULL REFERENCES sessions (id),
    status           TEXT NOT NULL,
    reason           TEXT,
    isolation        TEXT,
    memory_mb        BIGINT NOT NULL,
    vcpu_count       BIGINT NOT NULL,
    lifetime_seconds BIGINT NOT NULL,
    metadata         TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    started_at       BIGINT,
    expires_at       BIGINT,
    terminated_at    BIGINT
);
CREATE INDEX vms_of_account ON vms (account_id, created_at);
CREATE INDEX vms_by_status ON vms (status);

CREATE TABLE executions (
    id               TEXT PRIMARY KEY NOT NULL,
    account_id       BIGINT NOT NULL REFERENCES accounts (id),
    session_id       TEXT NOT NULL,
    vm_id            TEXT NOT NULL,
    status           TEXT NOT NULL,
    language         TEXT,
    deadline_at      BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    finished_at      BIGINT,
    exit_code        BIGINT,
    execution_micros BIGINT,
    cpu_micros       BIGINT,
    timed_out        BIGINT NOT NULL,
    stdout           BLOB NOT NULL,
    stderr           BLOB NOT NULL
);
CREATE INDEX executions_by_status ON executions (status, finished_at);
