-- How long a subscriber of the stream has been silent, and the event that an operator sets aside

ALTER TABLE callboard_readers ADD COLUMN silent DOUBLE PRECISION NOT NULL DEFAULT 0;  -- seconds, of those in which this service ran

ALTER TABLE callboard_cursors ADD COLUMN set_aside BIGINT;  -- its number; it becomes a dead letter
