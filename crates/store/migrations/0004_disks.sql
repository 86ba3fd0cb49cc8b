-- Snapshots, volumes, their checkpoints and mounts; how VMs start and what becomes of their disks; requests that may be
-- repeated.

-- Whoever adds to an account's space takes the counter 'space' first, so that two of them do not pass the limit together.
INSERT INTO counters (name, value) VALUES ('space', 0);

-- What a session's VMs start from and have mounted, as JSON.
ALTER TABLE sessions ADD COLUMN origin TEXT NOT NULL DEFAULT '{}';

ALTER TABLE vms ADD COLUMN snapshot_id TEXT;
-- The snapshot that its disk is kept as when it ends, and that snapshot's name.
ALTER TABLE vms ADD COLUMN keep_as TEXT;
ALTER TABLE vms ADD COLUMN keep_name TEXT;
CREATE INDEX vms_of_snapshot ON vms (snapshot_id);

CREATE TABLE snapshots (
    id           TEXT PRIMARY KEY NOT NULL,
    account_id   BIGINT NOT NULL REFERENCES accounts (id),
    name         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    status       TEXT NOT NULL,
    -- Made for clones alone, and deleted after them.
    is_hidden    BIGINT NOT NULL,
    vm_id        TEXT,
    oci_image    TEXT,
    -- What is to be built, as JSON, until it is.
    build        TEXT,
    attempts     BIGINT NOT NULL,
    step         TEXT,
    log          TEXT NOT NULL,
    last_error   TEXT,
    digest       TEXT,
    config       TEXT NOT NULL,
    size_bytes   BIGINT,
    pause_micros BIGINT,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL
);
CREATE INDEX snapshots_of_account ON snapshots (account_id, created_at);
CREATE INDEX snapshots_by_status ON snapshots (status);

CREATE TABLE volumes (
    id            TEXT PRIMARY KEY NOT NULL,
    account_id    BIGINT NOT NULL REFERENCES accounts (id),
    name          TEXT NOT NULL,
    status        TEXT NOT NULL,
    quota_bytes   BIGINT NOT NULL,
    used_bytes    BIGINT NOT NULL,
    charged_bytes BIGINT NOT NULL,
    measured_at   BIGINT,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL
);
-- A name is free again as soon as its volume is being deleted.
CREATE UNIQUE INDEX volumes_by_name ON volumes (account_id, name) WHERE status <> 'deleting';

CREATE TABLE checkpoints (
    id         TEXT PRIMARY KEY NOT NULL,
    account_id BIGINT NOT NULL REFERENCES accounts (id),
    volume_id  TEXT NOT NULL REFERENCES volumes (id),
    name       TEXT NOT NULL,
    status     TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX checkpoints_of_volume ON checkpoints (volume_id, created_at);

CREATE TABLE mounts (
    vm_id         TEXT NOT NULL,
    path          TEXT NOT NULL,
    volume_id     TEXT NOT NULL REFERENCES volumes (id),
    checkpoint_id TEXT,
    is_read_only  BIGINT NOT NULL,
    status        TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    PRIMARY KEY (vm_id, path)
);
CREATE INDEX mounts_of_volume ON mounts (volume_id);

CREATE TABLE requests (
    account_id  BIGINT NOT NULL REFERENCES accounts (id),
    key_hash    TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    -- Makes secrets in the answer, with the caller's own key.
    nonce       BLOB NOT NULL,
    answer      TEXT,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (account_id, key_hash)
);
CREATE INDEX requests_by_age ON requests (created_at);
