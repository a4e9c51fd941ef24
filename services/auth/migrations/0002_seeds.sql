CREATE TABLE seeds (                  -- the password that the settings gave a user last, whose own may be another since
  email         TEXT PRIMARY KEY,
  password_hash TEXT NOT NULL
);
