"""The chaos rig: rides on real processes while faults hit them, and an account of what clients were answered.

    make chaos SEEDS="1 2 3"

Each seed chooses the faults: a process is killed, frozen, or stopped; a link is cut, frozen, half opened, slowed, or reset again and
again; the broker or PostgreSQL is killed; connections to PostgreSQL are ended; the clock of a process is set. Then everything
is repaired, and the system has 30 seconds to settle. `lost` counts answers that the databases do not hold, `twice` what
happened more than once, and `stuck` what did not come to an end.
"""
