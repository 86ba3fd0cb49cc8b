-- Finds the records that have been kept for long enough.
CREATE INDEX vms_by_end ON vms (terminated_at);
CREATE INDEX vms_of_session ON vms (session_id);
CREATE INDEX sessions_by_age ON sessions (created_at);
