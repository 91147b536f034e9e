"""The report of `launch.jacobian`: a whole map, or chosen columns of it."""
