-- When an event whose handler has failed is tried again, and which version an operator lets continue without the events it cannot decode

ALTER TABLE callboard_attempts ADD COLUMN retry_at DOUBLE PRECISION NOT NULL DEFAULT 0;  -- seconds since 1970

ALTER TABLE callboard_cursors ADD COLUMN accepted TEXT;  -- the digest of that version's event types
