-- Whose records these are: the id of the data directory that they belong to. One row at most.
CREATE TABLE instance (
    slot BIGINT PRIMARY KEY NOT NULL CHECK (slot = 1),
    id   TEXT NOT NULL
);
