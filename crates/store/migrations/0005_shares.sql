-- Ports of VMs under URLs.
CREATE TABLE shares (
    id          TEXT PRIMARY KEY NOT NULL,
    account_id  BIGINT NOT NULL REFERENCES accounts (id),
    vm_id       TEXT NOT NULL,
    session_id  TEXT NOT NULL,
    port        BIGINT NOT NULL,
    is_public   BIGINT NOT NULL,
    status      TEXT NOT NULL,
    -- The port of the host that it is found under, where shares have ports of their own.
    listen_port BIGINT,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL
);
CREATE UNIQUE INDEX shares_by_port ON shares (vm_id, port) WHERE status = 'open';
CREATE INDEX shares_of_account ON shares (account_id, created_at);
CREATE INDEX shares_by_status ON shares (status, updated_at);
