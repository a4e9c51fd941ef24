-- What the runtime keeps in every service's database. The tables' argument stands in stream.py, subscription.py, once.py.

CREATE TABLE callboard_epochs (
  epoch   TEXT PRIMARY KEY,
  ordinal BIGINT NOT NULL UNIQUE,
  begins  BIGINT NOT NULL            -- the last number of the epoch before that is part of this one's history
);

CREATE TABLE callboard_stream_head (
  one    INTEGER PRIMARY KEY CHECK (one = 1),
  seq    BIGINT NOT NULL,
  pruned BIGINT NOT NULL             -- the highest number that was deleted
);
INSERT INTO callboard_stream_head (one, seq, pruned) VALUES (1, 0, 0);

CREATE TABLE callboard_stream (
  seq   BIGINT PRIMARY KEY,
  id    TEXT NOT NULL,
  type  TEXT NOT NULL,
  body  TEXT NOT NULL,
  at    TEXT NOT NULL,
  trace TEXT NOT NULL
);

CREATE TABLE callboard_readers (
  subscriber TEXT PRIMARY KEY,
  seq        BIGINT NOT NULL
);

CREATE TABLE callboard_cursors (
  publisher TEXT PRIMARY KEY,
  epoch     TEXT NOT NULL,
  seq       BIGINT NOT NULL,
  event_id  TEXT NOT NULL,           -- of the event at seq; empty where nothing can be compared
  types     TEXT NOT NULL,           -- a JSON object: the type, and the number after which it is taken
  stopped   TEXT                     -- why it waits for an operator
);

CREATE TABLE callboard_attempts (
  publisher TEXT PRIMARY KEY,
  epoch     TEXT NOT NULL,
  seq       BIGINT NOT NULL,
  attempts  BIGINT NOT NULL
);

CREATE TABLE callboard_dead_letters (
  publisher TEXT NOT NULL,
  epoch     TEXT NOT NULL,
  seq       BIGINT NOT NULL,
  event_id  TEXT NOT NULL,
  type      TEXT NOT NULL,
  body      TEXT NOT NULL,
  at        TEXT NOT NULL,
  trace     TEXT NOT NULL,
  attempts  BIGINT NOT NULL,
  error     TEXT NOT NULL,
  PRIMARY KEY (publisher, epoch, seq)
);

CREATE TABLE callboard_once (
  caller  TEXT NOT NULL,
  subject TEXT NOT NULL,
  request TEXT NOT NULL,
  key     TEXT NOT NULL,
  digest  TEXT NOT NULL,
  state   TEXT NOT NULL CHECK (state IN ('claimed', 'free', 'reply', 'error')),
  attempt BIGINT NOT NULL,
  owner   TEXT NOT NULL,
  lease   DOUBLE PRECISION NOT NULL, -- seconds since 1970 until which the claim holds, then when the row may go
  answer  TEXT,                      -- the reply or the error, as JSON text
  PRIMARY KEY (caller, subject, request, key)
);
CREATE INDEX callboard_once_lease ON callboard_once (lease);
