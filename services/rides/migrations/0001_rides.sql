CREATE TABLE rides (
  id         TEXT PRIMARY KEY,   -- UUIDv7: sorts by time
  user_id    TEXT NOT NULL,
  scooter_id TEXT NOT NULL,
  state      TEXT NOT NULL CHECK (state IN ('active', 'ended', 'aborted')),
  started_at TEXT NOT NULL,
  ended_at   TEXT,
  cents      BIGINT
);
CREATE UNIQUE INDEX rides_one_per_user ON rides (user_id) WHERE state = 'active';
CREATE UNIQUE INDEX rides_one_per_scooter ON rides (scooter_id) WHERE state = 'active';
CREATE INDEX rides_of_user ON rides (user_id, id);
