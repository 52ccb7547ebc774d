-- Threads of a session by what they do: a session may have had thousands of them.
CREATE INDEX session_threads_status_idx ON session_threads (session_id, status, position);
