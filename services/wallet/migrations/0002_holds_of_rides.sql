ALTER TABLE holds ADD COLUMN ride_id TEXT;   -- the ride that has confirmed it; without one it expires
CREATE INDEX holds_unconfirmed ON holds (at) WHERE ride_id IS NULL;
CREATE INDEX holds_of_ride ON holds (ride_id) WHERE ride_id IS NOT NULL;
