"""The chaos rig: rides on real processes while faults hit them, and an account of what clients were answered.

    make chaos SEEDS="1 2 3"

Each seed chooses the faults, one a second. Processes are killed, frozen, stopped, or restarted in a newer version and back. Links
are cut, frozen, half opened, slowed, delayed by 5 s, reset again and again, or made to repeat what is sent. The broker or
PostgreSQL is killed, or its standby is promoted; connections to it are ended. The disk of the databases is full, a backup is
restored, or the clock of a process is set. Then everything is repaired, and the system has 30 seconds to settle. `lost` counts
answers that the databases do not hold, `twice` what happened more than once, and `stuck` what did not come to an end.
"""
