-- A page lists the rides in the order in which they were committed, and a ride lasts as long as it lasts, whatever the clock said then

ALTER TABLE rides ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rides ADD COLUMN began DOUBLE PRECISION;  -- clock.steady(); NULL for those that began before this column existed
UPDATE rides SET number = ordered.number
  FROM (SELECT id, row_number() OVER (ORDER BY id) AS number FROM rides) AS ordered WHERE ordered.id = rides.id;
CREATE UNIQUE INDEX rides_number ON rides (number);
DROP INDEX rides_of_user;
CREATE INDEX rides_of_a_user ON rides (user_id, number);
