"""What `launch.bench` times, one suite a file.

Each has `PEERS`, {name: what it is}, ours first; `cases(quick, tokens)`, the
sizes to run; and `measure(name, case)`, which runs in a process of its own and
returns a row's numbers. Some have `SLOW`, peers that --quick leaves out, and
`compare(results)`, which says how far the peers' results are from ours.
"""
