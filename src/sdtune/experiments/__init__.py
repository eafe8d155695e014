"""Many runs that differ in known ways, trained, compared and set side by side: `sdtune experiment`, `ls` and `compare` of several runs.

matrix.py reads which cells there are, cells.py knows what makes one cell another and where its runs lie, run.py does the work that is
missing (each run in a process of its own: work.py), leaderboard.py says what can be told apart, page.py shows it.
"""
