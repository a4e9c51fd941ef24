CREATE TABLE login_sources (          -- the addresses from which an account was logged in to last
  user_id TEXT NOT NULL REFERENCES users (id),
  source  TEXT NOT NULL,
  at      DOUBLE PRECISION NOT NULL,  -- seconds since 1970
  PRIMARY KEY (user_id, source)
);
