"""What `launch.bench` times, one suite a file.

Each has `PEERS`, {name: what it is}, ours first, `cases(quick, tokens)`, the
sizes to run, and `measure(name, case)`, which runs in a process of its own
and returns a row's numbers. `SLOW` names peers that --quick leaves out, and
`compare(results)`, where there is one, how far peers are from ours.
"""
