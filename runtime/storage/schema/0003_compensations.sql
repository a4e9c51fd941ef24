-- Requests of `ctx.undo` that nobody has answered yet

CREATE TABLE callboard_compensations (
  id       TEXT PRIMARY KEY,         -- also the request's idempotency key
  callee   TEXT NOT NULL,            -- the service that is asked
  request  TEXT NOT NULL,            -- the full name
  body     TEXT NOT NULL,            -- as JSON text
  at       DOUBLE PRECISION NOT NULL, -- seconds since 1970
  attempts BIGINT NOT NULL,
  error    TEXT NOT NULL             -- what the last attempt met
);
CREATE INDEX callboard_compensations_order ON callboard_compensations (callee, attempts, at);
