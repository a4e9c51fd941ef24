CREATE TABLE scooters (
  id             TEXT PRIMARY KEY,
  state          TEXT NOT NULL CHECK (state IN ('free', 'reserved', 'riding', 'lost')),
  band           BIGINT NOT NULL,           -- of latitude: see places.py
  lat            DOUBLE PRECISION NOT NULL,
  lon            DOUBLE PRECISION NOT NULL,
  battery        DOUBLE PRECISION NOT NULL, -- percent
  seen_at        TEXT NOT NULL,
  reservation_id TEXT UNIQUE,               -- of whoever has it reserved, or rides it
  reserved_at    TEXT,
  ride_id        TEXT                       -- the ride that has confirmed the reservation
);
CREATE INDEX scooters_near ON scooters (band, lon) WHERE state = 'free';
CREATE INDEX scooters_silent ON scooters (seen_at) WHERE state <> 'lost';
CREATE INDEX scooters_ridden ON scooters (ride_id) WHERE ride_id IS NOT NULL;
CREATE INDEX scooters_reserved ON scooters (reserved_at) WHERE state = 'reserved';
