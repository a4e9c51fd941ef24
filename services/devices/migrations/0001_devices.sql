CREATE TABLE devices (
  key        TEXT PRIMARY KEY,   -- with which the fleet was asked for its scooter
  scooter_id TEXT UNIQUE,        -- what the fleet called it
  lat        DOUBLE PRECISION NOT NULL,
  lon        DOUBLE PRECISION NOT NULL,
  battery    DOUBLE PRECISION NOT NULL,
  locked     INTEGER NOT NULL
);
