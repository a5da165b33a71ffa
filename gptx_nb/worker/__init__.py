"""The process that trains one attempt of one run. Started with `-m`, imported by nobody."""
