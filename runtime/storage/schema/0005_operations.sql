-- What operators repair, and which instance runs a timer

ALTER TABLE callboard_epochs ADD COLUMN parent TEXT;  -- of a branch that a restore has cut off: the epoch before it; empty if there was none

ALTER TABLE callboard_readers ADD COLUMN heard DOUBLE PRECISION NOT NULL DEFAULT 0;  -- seconds since 1970: when it pulled last

ALTER TABLE callboard_cursors ADD COLUMN diverged BOOLEAN NOT NULL DEFAULT FALSE;  -- stopped because the publisher does not know its position

CREATE TABLE callboard_timers (
  timer TEXT PRIMARY KEY,
  due   DOUBLE PRECISION NOT NULL,   -- seconds since 1970: when it runs next
  owner TEXT NOT NULL,               -- the instance that runs it now; empty between two runs
  lease DOUBLE PRECISION NOT NULL    -- seconds since 1970 until which that instance has it
);
