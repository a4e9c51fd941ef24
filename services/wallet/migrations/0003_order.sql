-- A page lists the entries in the order in which they were committed, whatever the clock said then

ALTER TABLE entries ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
UPDATE entries SET number = ordered.number
  FROM (SELECT id, row_number() OVER (ORDER BY id) AS number FROM entries) AS ordered WHERE ordered.id = entries.id;
CREATE UNIQUE INDEX entries_number ON entries (number);
DROP INDEX entries_user;
CREATE INDEX entries_of_user ON entries (user_id, number);
