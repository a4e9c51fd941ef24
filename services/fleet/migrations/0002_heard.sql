-- When a scooter was last heard, on a clock that nobody sets; `seen_at` is the time of day, for people

ALTER TABLE scooters ADD COLUMN heard_at DOUBLE PRECISION NOT NULL DEFAULT 1e12;  -- in the future, and so now
DROP INDEX scooters_silent;
CREATE INDEX scooters_silent ON scooters (heard_at) WHERE state <> 'lost';
