CREATE TABLE numbers (
  user_id TEXT PRIMARY KEY,
  last    BIGINT NOT NULL    -- the number of the user's newest notice: whoever adds one takes the row first
);

CREATE TABLE notices (
  id      TEXT PRIMARY KEY,
  user_id TEXT NOT NULL,
  number  BIGINT NOT NULL,   -- counts from 1 for each user
  kind    TEXT NOT NULL,
  text    TEXT NOT NULL,
  ride_id TEXT,
  cents   BIGINT,
  at      TEXT NOT NULL,
  UNIQUE (user_id, number)
);
