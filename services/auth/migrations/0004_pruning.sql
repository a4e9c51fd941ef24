-- What is old is found without a look at every row
CREATE INDEX sessions_expires ON sessions (expires);
CREATE INDEX refresh_tokens_of_session ON refresh_tokens (sid);
CREATE INDEX login_sources_at ON login_sources (at);
