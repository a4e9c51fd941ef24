CREATE TABLE accounts (
  user_id       TEXT PRIMARY KEY,
  balance_cents BIGINT NOT NULL,     -- the sum of the account's entries, at all times
  held_cents    BIGINT NOT NULL      -- the sum of its standing holds
);

CREATE TABLE entries (
  id      TEXT PRIMARY KEY,          -- UUIDv7: sorts by time
  user_id TEXT NOT NULL REFERENCES accounts (user_id),
  kind    TEXT NOT NULL,
  cents   BIGINT NOT NULL,
  ride_id TEXT UNIQUE,               -- a ride is charged once
  at      TEXT NOT NULL
);
CREATE INDEX entries_user ON entries (user_id, id);

CREATE TABLE holds (
  id      TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES accounts (user_id),
  cents   BIGINT NOT NULL,
  at      TEXT NOT NULL
);
