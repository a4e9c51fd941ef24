-- The instances that simulate scooters: each has a share of them

CREATE TABLE simulators (
  id   TEXT PRIMARY KEY,
  seen DOUBLE PRECISION NOT NULL   -- seconds since 1970: when it was last known to run
);
