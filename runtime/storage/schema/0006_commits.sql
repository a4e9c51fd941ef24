-- Marks of transactions without events, by which PostgreSQL says whether one was committed whose connection was lost in its commit

CREATE TABLE callboard_commits (
  id TEXT PRIMARY KEY,
  at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP
);
