CREATE TABLE users (
  id            TEXT PRIMARY KEY,
  email         TEXT NOT NULL UNIQUE,
  name          TEXT NOT NULL,
  role          TEXT NOT NULL,
  disabled      BOOLEAN NOT NULL,
  password_hash TEXT NOT NULL,
  created_at    TEXT NOT NULL
);

CREATE TABLE sessions (
  sid        TEXT PRIMARY KEY,
  user_id    TEXT NOT NULL REFERENCES users (id),
  secret     TEXT NOT NULL,          -- makes each refresh token's successor
  expires    BIGINT NOT NULL,        -- seconds since 1970
  revoked    BOOLEAN NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id);

CREATE TABLE refresh_tokens (
  hash    TEXT PRIMARY KEY,          -- the tokens themselves are stored nowhere
  sid     TEXT NOT NULL REFERENCES sessions (sid),
  used_at DOUBLE PRECISION           -- when it was exchanged for its successor
);

CREATE TABLE revocations (
  version BIGINT PRIMARY KEY,
  sid     TEXT NOT NULL,
  until   BIGINT NOT NULL            -- when the session's last access token expires
);

CREATE TABLE signing_keys (
  kid        TEXT PRIMARY KEY,
  private    TEXT NOT NULL,          -- base64url of the Ed25519 seed
  signs_from BIGINT NOT NULL,        -- published at once, used from then on
  retires    BIGINT                  -- no token that it signed is valid after that
);
